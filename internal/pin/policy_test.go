package pin

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/digestlock/digestlock/internal/image"
)

func TestMatch(t *testing.T) {
	t.Parallel()
	tests := []struct {
		glob, name string
		want       bool
	}{
		{"a", "a", true},
		{"a", "b", false},
		{"a", "a/b", false},
		{"a/b", "a", false},
		{"*", "a", true},
		{"*", "a/b", false},
		{"*/b", "a/b", true},
		{"a/*", "a/b", true},
		{"a/*", "a", false},
		{"a/*", "a/b/c", false},
		{"a/x*z", "a/xyz", true},
		{"a/x*z", "a/x/z", false},
		{"a/[bc]?", "a/b1", true},
		{"a/[bc]?", "a/d1", false},
		{"**", "a", true},
		{"**", "a/b/c", true},
		{"a/**", "a", true},
		{"a/**", "a/b/c", true},
		{"a/**", "b/a", false},
		{"**/c", "c", true},
		{"**/c", "a/b/c", true},
		{"**/c", "a/c/b", false},
		{"a/**/c", "a/c", true},
		{"a/**/c", "a/b/b/c", true},
		{"a/**/c", "a/b/c/d", false},
		{"a/**/b/**/c", "a/x/b/y/b/c", true},
		{"a/**/b/*/c", "a/b/b/x/c", true},
		{"**/**", "a", true},
		{"a**", "ab", true},
		{"a**", "a/b", false},
		{"localhost:5000/**", "localhost:5000/x/y", true},
	}
	for _, tt := range tests {
		if got := match(tt.glob, tt.name); got != tt.want {
			t.Errorf("match(%q, %q) = %t, want %t", tt.glob, tt.name, got, tt.want)
		}
	}
}

// TestMatchIsNotExponential: somebody else's pattern cannot stop a render.
func TestMatchIsNotExponential(t *testing.T) {
	t.Parallel()
	done := make(chan bool)
	go func() { done <- match(strings.Repeat("**/a/", 40)+"b", strings.Repeat("a/", 120)+"c") }()
	select {
	case got := <-done:
		if got {
			t.Error("it matches")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still matching")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		policy Policy
		want   string
	}{
		{"nothing", Policy{}, ""},
		{"everything", Policy{
			Tags: latest, Include: []string{"**", "ghcr.io/*/x", "localhost:5000/x"}, Exclude: []string{"nginx"},
			ExcludeKinds: []string{"*Job"}, Fields: []Field{{"a.io", "v1", "App", "spec/images[]"}},
		}, ""},
		{"tag", Policy{Tags: image.Tags{"["}}, `tag pattern "[": syntax error in pattern`},
		{"include", Policy{Include: []string{"a", "b/[x"}}, `image pattern "b/[x": syntax error in pattern`},
		{"exclude", Policy{Exclude: []string{""}}, `image pattern "": empty path component`},
		{"trailing slash", Policy{Exclude: []string{"ghcr.io/"}}, `image pattern "ghcr.io/": empty path component`},
		{"with a tag", Policy{Exclude: []string{"ghcr.io/x:v1"}}, `image pattern "ghcr.io/x:v1": give the name without tag and digest: tags has the patterns of those`},
		{"kind", Policy{ExcludeKinds: []string{"[J"}}, `kind pattern "[J" is not a glob of kinds such as Job`},
		{"kind with a group", Policy{ExcludeKinds: []string{"batch/Job"}}, `kind pattern "batch/Job" is not a glob of kinds such as Job`},
		{"no kind", Policy{ExcludeKinds: []string{""}}, `kind pattern "" is not a glob of kinds such as Job`},
		{"no path", Policy{Fields: []Field{{Kind: "App"}}}, `field path "" is not keys separated by slashes, such as spec/containers[]/image`},
		{"leading slash", Policy{Fields: []Field{{Path: "/spec"}}}, `field path "/spec" is not keys separated by slashes, such as spec/containers[]/image`},
		{"brackets only", Policy{Fields: []Field{{Path: "spec/[]/image"}}}, `field path "spec/[]/image" is not keys separated by slashes, such as spec/containers[]/image`},
	}
	for _, tt := range tests {
		got := ""
		if err := tt.policy.Check(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: Check() = %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestPolicy: which references each part of a policy leaves.
func TestPolicy(t *testing.T) {
	t.Parallel()
	const text = `{apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: {containers: [{image: nginx}]}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: c}, spec: {containers: [{image: GHCR.io/acme/a/b}, {image: 'ghcr.io/acme/c:v1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{image: 'localhost:5000/x'}, {image: acme/d}]}}
`
	const job, deep, local, hub = "index.docker.io/library/nginx:latest", "ghcr.io/acme/a/b:latest", "localhost:5000/x:latest", "index.docker.io/acme/d:latest"
	tests := []struct {
		name   string
		policy Policy
		want   []string
	}{
		{"all", Policy{}, []string{deep, hub, job, local}},
		{"include normalised", Policy{Include: []string{"index.docker.io/library/*"}}, []string{job}},
		{"include as people call it", Policy{Include: []string{"docker.io/**"}}, []string{hub, job}},
		{"include as written", Policy{Include: []string{"nginx", "GHCR.io/**"}}, []string{deep, job}},
		{"one component", Policy{Include: []string{"ghcr.io/acme/*"}}, nil},
		{"any component", Policy{Include: []string{"ghcr.io/acme/**"}}, []string{deep}},
		{"exclude", Policy{Exclude: []string{"ghcr.io/**", "acme/*"}}, []string{job, local}},
		{"exclude wins", Policy{Include: []string{"**"}, Exclude: []string{"**/x"}}, []string{deep, hub, job}},
		{"kind", Policy{ExcludeKinds: []string{"Job"}}, []string{deep, hub, local}},
		{"kinds", Policy{ExcludeKinds: []string{"*Job"}}, []string{hub, local}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.policy.Tags = latest
			if err := tt.policy.Check(); err != nil {
				t.Fatal(err)
			}
			p, err := New(decode(t, text), tt.policy)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range p.Images() {
				got = append(got, r.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Images (-want +got):\n%s", diff)
			}
		})
	}
}

// TestExcludedKindIsNotChecked: what the user told us to leave alone cannot be an error.
func TestExcludedKindIsNotChecked(t *testing.T) {
	t.Parallel()
	text := "{kind: Odd, spec: {x: {apiVersion: v1, kind: Pod, spec: {containers: [{image: 'A B'}]}}}}"
	if _, err := New(decode(t, text), Policy{Tags: latest}); err == nil {
		t.Error("no error")
	}
	if _, err := New(decode(t, text), Policy{Tags: latest, ExcludeKinds: []string{"Odd"}}); err != nil {
		t.Error(err)
	}
}
