package plugin

import (
	"fmt"
	"strings"
)

// YAML returns plugin.yaml: what Argo CD's sidecar reads to run this plugin. It has no version, which Argo CD v4 will
// refuse, and no discover, which would take over every kustomize Application there is.
func YAML() string {
	var b strings.Builder
	b.WriteString(`# Written by "go test ./plugin -update" from the table in parameters.go.
apiVersion: argoproj.io/v1alpha1
kind: ConfigManagementPlugin
metadata:
  name: digestlock
spec:
  generate:
    command: [digestlock, generate]
  parameters:
    static:
`)
	for _, p := range Parameters() {
		fmt.Fprintf(&b, "      - name: %s\n        title: %s\n        tooltip: %q\n        collectionType: %s\n", p.Name, p.Title, p.Tooltip, p.Type)
		switch p.Type {
		case "array":
			fmt.Fprintf(&b, "        array: [%s]\n", p.Default)
		case "map":
			b.WriteString("        map: {}\n")
		default:
			fmt.Fprintf(&b, "        string: %q\n", p.Default)
		}
	}
	return b.String()
}

// Markdown returns docs/parameters.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString("# Parameters\n\n" +
		"<!-- Written by \"go test ./plugin -update\" from the table in plugin/parameters.go. -->\n\n" +
		"An Application sets them in `source.plugin.parameters`; `digestlock generate` takes each as a flag of the same\n" +
		"name. A flag in the sidecar is the operator's default, the Application's parameter wins.\n\n" +
		"| name | type | default | what it does |\n|---|---|---|---|\n")
	for _, p := range Parameters() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", p.Name, p.Type, code(p.Default), p.Tooltip)
	}
	return b.String()
}

func code(s string) string {
	if s == "" {
		return "none"
	}
	return "`" + s + "`"
}
