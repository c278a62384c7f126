package main

import (
	"context"
	"os"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/demo"
)

const demoUsage = `[FLAGS]

Shows the whole loop on this machine: push latest, render, pin, commit, push again, flush, commit, render, roll back.
It starts a registry, a Git server and a resolver on the loopback interface, runs the real commands against them, shows
their output, checks it, and cleans up. It needs neither network nor git.`

func runDemo(ctx context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock demo", demoUsage)
	keep := flags.Bool("keep", false, "leave the workspace behind and print commands to explore it")
	if _, err := flags.Parse(env, args, 0); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return demo.Run(ctx, demo.Options{Self: self, Out: env.Stdout, Keep: *keep})
}
