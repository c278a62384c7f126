package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/render"
)

// buildVersion is set by the linker, see the Makefile.
var buildVersion = "devel"

func version(_ context.Context, env cli.Env, args []string) error {
	flags := cli.NewFlags("digestlock version", "\n\nPrints the versions of digestlock, of the kustomize it renders like, and of Go.")
	if _, err := flags.Parse(env, args, 0); err != nil {
		return err
	}
	_, err := fmt.Fprintf(env.Stdout, "digestlock %s\nkustomize %s\n%s\n", buildVersion, render.KustomizeVersion, runtime.Version())
	return err
}

// buildInfo is the metric that says which build answers.
func buildInfo() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "digestlock_build_info",
		Help:        "1, for the versions in the labels.",
		ConstLabels: prometheus.Labels{"version": buildVersion, "kustomize": render.KustomizeVersion, "go": runtime.Version()},
	}, func() float64 { return 1 })
}
