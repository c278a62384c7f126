package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/digestlock/digestlock/internal/registrytest"
)

// craneAtOnce is how many of crane's processes run at a time, as by xargs -P.
const craneAtOnce = 8

// peers compares a cold render with other programs that find the same digests: crane, which is told the images and prints
// digests, and frizbee, which rewrites the manifests and renders nothing.
func (b *bench) peers(ctx context.Context) ([]row, error) {
	var rows []row
	for _, access := range []string{"anonymous", "bearer"} {
		more, err := b.peersAt(ctx, 20*time.Millisecond, access)
		if err != nil {
			return rows, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

func (b *bench) peersAt(ctx context.Context, latency time.Duration, access string) ([]row, error) {
	reg := registrytest.Listen(registrytest.New())
	defer reg.Close()
	var digests []string
	for i := range images {
		digests = append(digests, reg.Push(repository(i), "latest"))
	}
	if access == "bearer" {
		reg.RequireBearer("", "")
	}
	reg.SetLatency(latency)
	overlay, err := b.large("peers-"+access, reg.Host)
	if err != nil {
		return nil, err
	}
	settings := filepath.Join(b.dir, "frizbee-"+access)
	if err := write(filepath.Join(settings, ".frizbee.yml"), []byte(frizbeeSettings)); err != nil {
		return nil, err
	}
	names := imageNames(reg.Host, images)
	ours := call{args: []string{"digestlock", "generate", "--server=", "--insecure-registry", reg.Host, overlay}}
	theirs := call{args: []string{"frizbee", "image", "--dry-run", overlay}, dir: settings}
	ways := []struct {
		name string
		run  func() ([]byte, float64, error)
	}{
		{"generate, cold, without serve", func() ([]byte, float64, error) { return b.output(ctx, ours) }},
		{"crane digest, one by one", func() ([]byte, float64, error) { return b.crane(ctx, 1, names) }},
		{fmt.Sprintf("crane digest, %d at a time", craneAtOnce), func() ([]byte, float64, error) { return b.crane(ctx, craneAtOnce, names) }},
		{"frizbee image, of the same manifests", func() ([]byte, float64, error) { return b.output(ctx, theirs) }},
	}
	rows := make([]row, len(ways))
	for range b.colds {
		for i, way := range ways {
			reg.ResetCounts()
			out, ms, err := way.run()
			if err != nil {
				return nil, err
			}
			for _, d := range digests {
				if !strings.Contains(string(out), d) {
					return nil, fmt.Errorf("%s: %s is not in the output", way.name, d)
				}
			}
			rows[i].Name = fmt.Sprintf("%d images at %v: %s, %s", images, latency, access, way.name)
			rows[i].Millis = append(rows[i].Millis, ms)
			_, rows[i].Facts = requests(reg)
		}
	}
	for i := range rows {
		rows[i].Base = rows[0].Millis
	}
	return rows, nil
}

// frizbeeSettings have frizbee look at the images that we look at: by default it leaves out the tag latest, and not fixed ones.
const frizbeeSettings = "images:\n  exclude_tags: []\n  exclude_images: [envoy]\n"

// crane has crane print the digest of each image, some at a time, and returns what it printed and the wall time of all in
// milliseconds.
func (b *bench) crane(ctx context.Context, atOnce int, names []string) ([]byte, float64, error) {
	out, errs := make([][]byte, len(names)), make([]error, len(names))
	start := time.Now()
	every(atOnce, len(names), func(i int) {
		out[i], _, errs[i] = b.output(ctx, call{args: []string{"crane", "digest", names[i]}})
	})
	took := millis(time.Since(start))
	for _, err := range errs {
		if err != nil {
			return nil, 0, err
		}
	}
	return bytes.Join(out, nil), took, nil
}
