package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/digestlock/digestlock/examples"
	"github.com/digestlock/digestlock/internal/lock"
)

const (
	deployments = 100
	images      = 50
	objectsFile = "objects.yaml"
)

// example copies the example repository and returns its dev overlay, with everything in the lock.
func (b *bench) example() (string, error) {
	if err := os.CopyFS(b.dir, examples.K8s); err != nil && !os.IsExist(err) {
		return "", err
	}
	overlay := filepath.Join(b.dir, "k8s/namespaces/backend/overlays/dev")
	return overlay, writeLock(overlay, []string{
		examples.Registry + "/acme/backend/migrate:latest", examples.Registry + "/acme/backend/server:latest",
	})
}

// large makes an overlay of Deployments that share images at registry, without a lock.
func (b *bench) large(name, registry string) (string, error) {
	return b.overlay(name, deployments, imageNames(registry, images))
}

// overlay makes an overlay of n Deployments with these images in turn, and each with a proxy of a fixed tag.
func (b *bench) overlay(name string, n int, names []string) (string, error) {
	var objects strings.Builder
	for i := range n {
		fmt.Fprintf(&objects, `apiVersion: apps/v1
kind: Deployment
metadata:
  name: app-%[1]d
spec:
  selector:
    matchLabels:
      app: app-%[1]d
  template:
    metadata:
      labels:
        app: app-%[1]d
    spec:
      containers:
      - name: app
        image: %[2]s
        args: [--listen=:8080, --log-level=info]
        env:
        - name: MODE
          value: production
        ports:
        - containerPort: 8080
        resources:
          limits:
            cpu: 500m
            memory: 128Mi
      - name: proxy
        image: registry.example.com/mirror/envoy:v1.36.2
---
`, i, names[i%len(names)])
	}
	dir := filepath.Join(b.dir, name)
	for file, text := range map[string]string{
		"kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: bench\nresources:\n- " + objectsFile + "\n",
		objectsFile:          objects.String(),
	} {
		if err := write(filepath.Join(dir, file), []byte(text)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func imageNames(registry string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s/%s:latest", registry, repository(i))
	}
	return names
}

func repository(i int) string { return fmt.Sprintf("acme/team/app-%02d", i) }

func writeLock(dir string, names []string) error {
	slices.Sort(names)
	var doc lock.Document
	for i, name := range names {
		doc.Pins = append(doc.Pins, lock.Pin{
			Image: name, Digest: fmt.Sprintf("sha256:%064x", i+1), ResolvedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		})
	}
	return write(filepath.Join(dir, lock.FileName), doc.Format())
}

func write(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), fs.ModePerm); err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o600)
}
