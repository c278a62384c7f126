// Bench measures what README.md and docs/design.md promise about speed, on this machine and in one run: ratios against
// a plain kustomize build, requests to the registry, start and size of the binaries. See README.md in this folder.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/render"
)

const usage = `[FLAGS]

Builds the programs, measures them, and prints one Markdown table. Exit code 1 when a cold resolve asks the registry
for more than it has to, a warm one for anything, a refresh more often than it may, when a render whose inputs have not
changed is built or not byte-identical, or when the resolver or a commit needs more memory than is promised; never
because of a time.`

func main() {
	cli.Main(cli.Program{Name: "bench", Commands: []cli.Command{{Name: "bench", Run: run}}})
}

// row is one line of the table. Zero values stay empty.
type row struct {
	Name   string    `json:"name"`
	Millis []float64 `json:"millis,omitempty"` // wall time of each run
	Base   []float64 `json:"-"`                // what Millis is compared with
	Facts  string    `json:"facts,omitempty"`
	Aim    string    `json:"aim,omitempty"`
}

// measures are what there is, in the order of the table.
var measures = []struct {
	name string
	run  func(*bench, context.Context) ([]row, error)
}{
	{"render", (*bench).locked},
	{"again", (*bench).again},
	{"cold", (*bench).resolve},
	{"peers", (*bench).peers},
	{"resolver", (*bench).remembered},
	{"refresh", (*bench).refresh},
	{"full-refresh", (*bench).behind},
	{"memory", (*bench).memory},
	{"commit", (*bench).commit},
	{"flush", (*bench).pushed},
	{"crowded", (*bench).crowded},
	{"scale", (*bench).scale},
	{"start", (*bench).start},
	{"stages", (*bench).stages},
	{"sizes", (*bench).sizes},
}

func names() []string {
	var all []string
	for _, m := range measures {
		all = append(all, m.name)
	}
	return all
}

func run(ctx context.Context, env cli.Env, args []string) (err error) {
	flags := cli.NewFlags("bench", usage)
	quick := flags.Bool("quick", false, "few runs: a check of the request counts rather than a measurement")
	file := flags.String("json", "", "write the result to this file too")
	only := flags.StringSlice("only", nil, "`measures` to take, of "+strings.Join(names(), ", ")+" (default all)")
	if _, err := flags.Parse(env, args, 0); err != nil {
		return err
	}
	for _, name := range *only {
		if !slices.Contains(names(), name) {
			return cli.Usage("the measures are "+strings.Join(names(), ", "), "--only: no measure %q", name)
		}
	}
	dir, err := os.MkdirTemp("", "digestlock-bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Overlays lie where argocd-cmp-server would unpack them: a render may read nothing outside of that.
	tree := filepath.Join(dir, "_cmp_server", "bench")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	b := &bench{dir: tree, runs: 30, colds: 5, files: manyFiles}
	if *quick {
		b.runs, b.colds, b.files = 3, 1, fewFiles
	}
	if err := b.build(ctx, env); err != nil {
		return err
	}
	var rows []row
	for _, m := range measures {
		if len(*only) > 0 && !slices.Contains(*only, m.name) {
			continue
		}
		more, err := m.run(b, ctx)
		rows = append(rows, more...)
		if err != nil {
			return errors.Join(err, b.print(env.Stdout, rows))
		}
	}
	if err := b.print(env.Stdout, rows); err != nil {
		return err
	}
	if *file != "" {
		data, err := json.MarshalIndent(rows, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(*file, append(data, '\n'), 0o644); err != nil { //nolint:gosec // for everybody to read
			return err
		}
	}
	return b.failed()
}

// bench is one run of the benchmark, below dir.
type bench struct {
	dir         string
	runs, colds int
	files       int      // of the repository that is committed to
	broken      []string // promises that did not hold
}

func (b *bench) failed() error {
	if len(b.broken) == 0 {
		return nil
	}
	return errors.New(strings.Join(b.broken, "; "))
}

func (b *bench) program(name string) string { return filepath.Join(b.dir, "bin", name) }

// build makes the programs as the Makefile does.
func (b *bench) build(ctx context.Context, env cli.Env) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath",
		"-ldflags", "-s -w -X sigs.k8s.io/kustomize/api/provenance.version="+render.KustomizeVersion,
		"-o", filepath.Join(b.dir, "bin")+"/", "./cmd/digestlock", "./cmd/digestlock-companion", "./bench/commit", "./bench/plain")
	peers := exec.CommandContext(ctx, "go", "build", "-trimpath", "-modfile=tools/go.mod", "-ldflags=-s -w", "-o", filepath.Join(b.dir, "bin")+"/",
		"sigs.k8s.io/kustomize/kustomize/v5", "github.com/google/go-containerregistry/cmd/crane", "github.com/stacklok/frizbee")
	for _, cmd := range []*exec.Cmd{cmd, peers} {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stderr = env.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go build: %w", err)
		}
	}
	return nil
}

// print writes the table.
func (b *bench) print(w io.Writer, rows []row) error {
	var t strings.Builder
	t.WriteString("| | median | min | ratio of medians | of minima | facts | aim |\n|---|--:|--:|--:|--:|---|---|\n")
	for _, r := range rows {
		cells := []string{r.Name, "", "", "", "", r.Facts, r.Aim}
		if len(r.Millis) > 0 {
			cells[1], cells[2] = fmt.Sprintf("%.1f ms", median(r.Millis)), fmt.Sprintf("%.1f ms", least(r.Millis))
		}
		if len(r.Base) > 0 {
			cells[3] = fmt.Sprintf("%.2f", median(r.Millis)/median(r.Base))
			cells[4] = fmt.Sprintf("%.2f", least(r.Millis)/least(r.Base))
		}
		t.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	_, err := io.WriteString(w, t.String())
	return err
}
