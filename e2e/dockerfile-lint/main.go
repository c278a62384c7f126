// dockerfile-lint prints what BuildKit's own linter finds in the Dockerfile on stdin, and exits with 1 when that is
// something. It is a module of its own for BuildKit's dependencies.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/opencontainers/go-digest"
)

func main() {
	dockerfile, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = lint(dockerfile)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func lint(dockerfile []byte) error {
	found, err := dockerfile2llb.DockerfileLint(context.Background(), dockerfile, dockerfile2llb.ConvertOpt{
		SourceMap:    &llb.SourceMap{Definition: &llb.Definition{}, Filename: "Dockerfile", Language: "Dockerfile", Data: dockerfile},
		MetaResolver: anyImage{},
	})
	if err != nil {
		return err
	}
	for _, w := range found.Warnings {
		fmt.Printf("%s: %s\n", w.RuleName, w.Detail)
	}
	if found.Error != nil {
		return fmt.Errorf("%s", found.Error.Message)
	}
	if n := len(found.Warnings); n > 0 {
		return fmt.Errorf("%d findings", n)
	}
	return nil
}

// anyImage says of each base that it is there, so that nobody has to be asked.
type anyImage struct{}

func (anyImage) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	config := []byte(`{"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers"}}`)
	return ref, digest.FromBytes(config), config, nil
}
