// Plain is the baseline of the benchmark: a kustomize build in process and nothing else. It renders through the same
// package, and so with the same guards, as "digestlock generate", and runs with the same GC percent, so that what
// differs between the two is digestlock: its start, its lock, its pins.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/digestlock/digestlock/internal/render"
)

// gcPercent is that of cmd/digestlock/generate.go.
const gcPercent = 400

func main() {
	debug.SetGCPercent(gcPercent)
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dir string) error {
	out, err := render.Build(context.Background(), dir, render.Options{})
	if err != nil {
		return err
	}
	manifests, err := out.YAML()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(manifests)
	return err
}
