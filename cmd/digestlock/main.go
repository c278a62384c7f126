// Command digestlock pins mutable image tags at render time. See README.md.
package main

import "github.com/digestlock/digestlock/internal/cli"

func main() { cli.Main(program()) }

func program() cli.Program {
	return cli.Program{
		Name:  "digestlock",
		Short: "Digestlock renders a kustomize overlay and replaces mutable image tags by the digests they stand for.",
		Commands: []cli.Command{
			{Name: "generate", Short: "render an overlay with every mutable tag pinned; what Argo CD runs", Run: generate},
			{Name: "explain", Short: "say which digest each image of an overlay gets, and why", Run: explain},
			{Name: "hold", Short: "keep an image of a lock where it is, or where it was", Run: hold},
			{Name: "release", Short: "let a held image of a lock follow its tag again", Run: release},
			{Name: "history", Short: "say when each digest of a lock was adopted, by which commit, and who took it back", Run: showHistory},
			{Name: "verify", Short: "check the locks of overlays; what CI runs on a pull request", Run: verify},
			{Name: "migrate", Short: "move a checkout from Argo CD Image Updater: the plan, and with --write the files", Run: migrateFrom},
			{Name: "doctor", Short: "check all that a render needs, registry to socket, and say what to mend", Run: doctor},
			{Name: "serve", Short: "run the resolver: cached registry look-ups, pin ledger, flush", Run: serve},
			{Name: "flush", Short: "make the resolvers ask for an image again now; what CI runs after a push", Run: flush},
			{Name: "demo", Short: "show the whole loop on this machine, with real parts in one process", Run: runDemo},
			{Name: "version", Short: "print versions", Run: version},
		},
	}
}
