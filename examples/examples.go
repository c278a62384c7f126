// Package examples holds the example repository of the documentation as files, for "digestlock demo" and the
// benchmarks.
package examples

import "embed"

// Registry is the host that the example's images name.
const Registry = "registry.example.com"

// K8s is the example's kustomize repository, below "k8s".
//
//go:embed k8s
var K8s embed.FS
