package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/image"
)

const flushUsage = `IMAGE... [FLAGS]

Makes every resolver forget what it knows of the images and ask their registries now, so that a push is visible at once.
CI runs it after a push. An image without a tag stands for all tags of its repository that a resolver remembers.

The server is best the companion, where there is one: it asks all resolvers, commits at once, and the commits are shown.
Otherwise it is the resolver: each address of its host name is a replica with a cache of its own, and all are asked: name a
headless Service.
Nothing is lost where a flush fails: a replica that missed it asks its registry again by itself once its answer is older
than its "digestlock serve --ttl", a minute by default.

Who may: the bearer of one of the server's tokens (--token-file, or the variable DIGESTLOCK_TOKEN), or of a token of an
OIDC issuer that the server trusts, which is given in the same way, or fetched in GitHub Actions with --oidc.
docs/flush.md has ready steps for CI.

Exit code: 0 every replica has the new digests, 1 not every replica or image, or none, 2 wrong usage.`

func flush(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock flush", flushUsage)
	servers := flags.StringSlice("server", []string{defaultServer}, "companion or resolver: unix:///path or http(s)://host:port (repeatable)")
	tokenFile := flags.String("token-file", "", "file with the bearer token; without it, the variable DIGESTLOCK_TOKEN is the token")
	oidc := flags.Bool("oidc", false, "fetch the job's token in GitHub Actions, which needs \"permissions: id-token: write\"")
	audience := flags.String("audience", "digestlock", "with --oidc: whom the token is for, as the resolver's --oidc-config says")
	format := flags.StringP("output", "o", "table", "table or json")
	timeout := flags.Duration("timeout", 30*time.Second, "give up after this long; until then, what answers 503 is asked again, as a companion that takes over from another")
	images, err := flags.Parse(env, args, api.MaxImages)
	if err != nil {
		return err
	}
	switch {
	case len(images) == 0:
		return cli.Usage("for example: digestlock flush registry.example.com/team/app:latest", "no image to flush")
	case *format != "table" && *format != "json":
		return cli.Usage("see \"digestlock flush --help\"", "--output: %q is neither table nor json", *format)
	case *oidc && *tokenFile != "":
		return cli.Usage("choose where the token comes from", "--oidc and --token-file exclude each other")
	}
	for _, i := range images {
		if _, err := image.ParseTarget(i); err != nil {
			return cli.Usage("for example: registry.example.com/team/app:latest", "%w", err)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, *timeout, fmt.Errorf("no answer within --timeout=%v", *timeout))
	defer cancel()
	token, err := flushToken(ctx, env, *tokenFile, *oidc, *audience)
	if err != nil {
		return err
	}
	replicas, err := flushAll(ctx, *servers, token, images)
	if err != nil {
		return err
	}
	if err := showFlushed(env.Stdout, replicas, *format); err != nil {
		return err
	}
	return notFlushed(replicas)
}

func flushToken(ctx context.Context, env cli.Env, file string, oidc bool, audience string) (string, error) {
	if oidc {
		return githubToken(ctx, env, audience)
	}
	token, err := api.Token(file)
	if err != nil {
		return "", fault.New(fault.SecretFile, "give a file with a token of the resolver", "--token-file: %w", err)
	}
	return cmp.Or(token, strings.TrimSpace(env.Getenv("DIGESTLOCK_TOKEN"))), nil
}

// flushed is what one replica answered. The fields from Resolvers on are a companion's.
type flushed struct {
	Replica   string        `json:"replica"`
	Images    []api.Flushed `json:"images"`
	Error     *api.Problem  `json:"error,omitempty"`
	Resolvers []api.Replica `json:"resolvers,omitzero"`
	Commits   []api.Commit  `json:"commits,omitzero"`
	Problem   *api.Problem  `json:"problem,omitempty"` // what the companion could not do
	Status    string        `json:"status,omitempty"`  // where to ask for the commits that it is still about
}

// flushAll asks all replicas of the servers at once, and returns their answers sorted by replica. The error is about a
// server without replicas.
func flushAll(ctx context.Context, servers []string, token string, images []string) ([]flushed, error) {
	var clients []*api.Client
	for _, s := range servers {
		if _, err := api.NewClient(s, ""); err != nil {
			return nil, cli.Usage("for example: --server http://digestlock-resolver:8085", "--server: %w", err)
		}
		c, err := api.Replicas(ctx, s, token)
		if err != nil {
			return nil, err
		}
		clients = append(clients, c...)
	}
	out := make([]flushed, len(clients))
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			defer c.Close()
			done, err := flushOne(ctx, c, images)
			out[i] = flushed{
				Replica: c.String(), Images: append([]api.Flushed{}, done.Flushed...), Error: api.ToProblem(err),
				Resolvers: done.Replicas, Commits: done.Commits, Problem: done.Error, Status: done.Status,
			}
		})
	}
	wg.Wait()
	slices.SortStableFunc(out, func(a, b flushed) int { return cmp.Compare(a.Replica, b.Replica) })
	return out, nil
}

// flushOne flushes one replica, again and again while it says that it cannot serve anybody now, until ctx ends: a companion
// takes up to 25 s to take over from another. It then returns what was said last.
func flushOne(ctx context.Context, c *api.Client, images []string) (done api.FlushResponse, err error) {
	_, _ = backoff.Retry(ctx, func() (struct{}, error) {
		again, failure := c.Flush(ctx, images)
		if err == nil || ctx.Err() == nil { // why it had to wait says more than that time is up
			done, err = again, failure
		}
		if !errors.Is(failure, api.ErrNotNow) {
			return struct{}{}, backoff.Permanent(failure)
		}
		return struct{}{}, failure
	}, backoff.WithMaxElapsedTime(0), backoff.WithBackOff(&backoff.ExponentialBackOff{
		InitialInterval: 200 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 1.6, MaxInterval: 3 * time.Second,
	}))
	return done, err
}

func showFlushed(w io.Writer, replicas []flushed, format string) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"replicas": replicas})
	}
	var rows []string
	for _, r := range replicas {
		if r.Error != nil {
			rows = append(rows, failed(r.Replica, r.Error))
			continue
		}
		for _, x := range r.Resolvers {
			if x.Error != nil {
				rows = append(rows, failed(x.Address, x.Error))
			}
		}
		if len(r.Images) == 0 {
			rows = append(rows, row("-", r.Replica, "", "", nil, "ok, nothing remembered"))
		}
		for _, i := range r.Images {
			result := "ok"
			if i.Error != nil {
				result = "forgotten, not resolved: " + i.Error.Message
			}
			rows = append(rows, row(i.Image, r.Replica, i.Old, i.New, i.Applications, result))
		}
	}
	slices.Sort(rows) // by image, then by replica
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "IMAGE\tREPLICA\tOLD\tNEW\tAPPLICATIONS\tRESULT")
	for _, r := range rows {
		_, _ = fmt.Fprintln(t, r)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return showCommitted(w, replicas)
}

// showCommitted says what companions made of the flush; nothing for resolvers.
func showCommitted(w io.Writer, replicas []flushed) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range replicas {
		if r.Resolvers == nil {
			continue
		}
		_, _ = fmt.Fprintln(t) // ends the columns of what stands above
		for i, c := range r.Commits {
			if i == 0 {
				_, _ = fmt.Fprintln(t, "COMMIT\tREPOSITORY\tBRANCH\tSUBJECT")
			}
			_, _ = fmt.Fprintln(t, strings.Join([]string{line(c.Commit[:min(shownCommit, len(c.Commit))]), line(c.Repository), line(c.Branch), line(c.Subject)}, "\t"))
		}
		switch {
		case r.Status != "":
			_, _ = fmt.Fprintf(t, "%s has not ended its cycle yet, GET %s there says how it goes\n", line(r.Replica), line(r.Status))
		case len(r.Commits) == 0:
			_, _ = fmt.Fprintf(t, "%s committed nothing: nothing is new, or it waits for more\n", line(r.Replica))
		}
		if r.Problem != nil {
			_, _ = fmt.Fprintf(t, "%s could not do everything: %s\n", line(r.Replica), line(r.Problem.Message))
		}
	}
	return t.Flush()
}

// shownCommit is how many characters of a commit tables show.
const shownCommit = 12

func failed(replica string, p *api.Problem) string {
	return row("-", replica, "", "", nil, "failed: "+strings.TrimPrefix(p.Message, "resolver "+replica+": "))
}

// row is a line of the table. What came from a resolver stays in its column.
func row(image, replica, before, after string, apps []string, result string) string {
	const shown = 3 // -o json has all
	list := strings.Join(apps[:min(shown, len(apps))], ", ")
	if more := len(apps) - shown; more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return strings.Join([]string{line(image), line(replica), short(before), short(after), line(list), line(result)}, "\t")
}

// short is a digest as tables show it.
func short(digest string) string { return line(digest[:min(shownDigest, len(digest))]) }

// notFlushed returns an error that names the replicas and images where the flush failed, nil when there are none.
func notFlushed(replicas []flushed) error {
	const bound = "a replica that was not flushed asks again by itself within its --ttl, a minute by default"
	var where, hints []string
	for _, r := range replicas {
		if r.Error != nil {
			where, hints = append(where, r.Error.Message), append(hints, r.Error.Hint)
			continue
		}
		for _, x := range r.Resolvers {
			if x.Error != nil {
				where, hints = append(where, x.Error.Message), append(hints, x.Error.Hint)
			}
		}
		for _, i := range r.Images {
			if i.Error != nil {
				where, hints = append(where, r.Replica+": "+i.Image+": "+i.Error.Message), append(hints, i.Error.Hint)
			}
		}
	}
	if len(where) == 0 {
		return nil
	}
	return fault.New(fault.NotFlushed, strings.TrimPrefix(hints[0]+"; "+bound, "; "), "not flushed: %s", strings.Join(where, "; "))
}
