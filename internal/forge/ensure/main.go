// Ensure calls forge.Ensure once and prints what came of it as JSON. The end-to-end tests run it against a real Gitea: they
// are a module of their own, which sees programs only.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/forge"
	"github.com/digestlock/digestlock/internal/gitrepo"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprint(os.Stderr, fault.Text("ensure", err))
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) != 8 {
		return fault.New(fault.Usage, "give KIND REPO TOKEN-FILE CA-FILE HEAD BASE TITLE BODY", "%d arguments", len(args))
	}
	ca, err := os.ReadFile(args[3])
	if err != nil {
		return err
	}
	client, err := gitrepo.Auth{CA: ca}.Client()
	if err != nil {
		return err
	}
	token := func(context.Context) (string, error) {
		data, err := os.ReadFile(args[2])
		return strings.TrimSpace(string(data)), err
	}
	f, err := forge.New(args[0], args[1], "", token, client)
	if err != nil {
		return err
	}
	page, created, err := f.Ensure(ctx, forge.Request{Head: args[4], Base: args[5], Title: args[6], Body: args[7]})
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(map[string]any{"page": page, "created": created})
}
