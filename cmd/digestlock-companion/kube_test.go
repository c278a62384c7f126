package main

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/digestlock/digestlock/internal/cli"
)

func TestAdvertised(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ flag, podIP, listening, want string }{
		{"", "10.1.2.3", "[::]:8086", "10.1.2.3:8086"},
		{"", "10.1.2.3", "0.0.0.0:8086", "10.1.2.3:8086"},
		{"", "fd00::1", "[::]:8086", "[fd00::1]:8086"},
		{"", "10.1.2.3", "127.0.0.1:8086", "127.0.0.1:8086"},
		{"", "nonsense", "127.0.0.1:8086", "127.0.0.1:8086"},
		{"", "nonsense", "[::]:8086", ""},
		{"10.9.9.9:80", "10.1.2.3", "127.0.0.1:8086", "10.9.9.9:80"},
		{"10.9.9.9", "", "[::]:8086", ""},
		{"10.9.9.9:0", "", "[::]:8086", ""},
		{"0.0.0.0:80", "", "[::]:8086", ""},
		{"companion:80", "", "[::]:8086", ""},
	} {
		listening := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.listening))
		got, err := advertised(tt.flag, tt.podIP, listening)
		if err != nil {
			got = ""
		}
		if got != tt.want {
			t.Errorf("advertised(%q, %q, %s) = %q, %v, want %q", tt.flag, tt.podIP, tt.listening, got, err, tt.want)
		}
	}
	// Without any of them it is one of this machine's, where it has a way to others.
	got, err := advertised("", "", &net.TCPAddr{Port: 8086})
	if a, bad := netip.ParseAddrPort(got); err == nil && (bad != nil || a.Addr().IsUnspecified() || a.Port() != 8086) {
		t.Errorf("advertised() = %q", got)
	}
}

// TestIdentity: no two are the same, not of one process after the other in one pod either, and the others find the address in it.
func TestIdentity(t *testing.T) {
	t.Parallel()
	env := cli.Env{Lookup: func(name string) (string, bool) { return "10.1.2.3", name == "POD_IP" }}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	f := kubeFlags{elect: true}
	first, err := f.identity(env, l)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := f.identity(env, l); err != nil || second == first {
		t.Errorf("identity() = %q, %v, twice", second, err)
	}
	if got, err := addressIn(first); err != nil || got != "10.1.2.3:"+port {
		t.Errorf("addressIn(%q) = %q, %v", first, got, err)
	}
	deaf, err := f.identity(env, nil)
	if err != nil {
		t.Fatal(err)
	}
	for identity, want := range map[string]string{
		"":                                  "no companion leads now",
		deaf:                                "the companion that leads has no --listen",
		"10.1.2.3":                          "has no --listen",
		"pod-1_ABC_git.example.com:80":      "has no --listen",
		"pod-1_ABC_10.1.2.3:80@example.com": "has no --listen",
	} {
		if address, err := addressIn(identity); err == nil || address != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("addressIn(%q) = %q, %v, want %s", identity, address, err, want)
		}
	}
}

// TestApplicationNamespaces: one setting holds them as Argo CD's own does, with commas.
func TestApplicationNamespaces(t *testing.T) {
	t.Parallel()
	for given, args := range map[string][]string{"team-a, team-b": nil, "": {"--application-namespaces=team-a", "--application-namespaces=team-b"}} {
		var kube kubeFlags
		flags := cli.NewFlags("test", "")
		kube.register(flags)
		env := cli.Env{Lookup: func(name string) (string, bool) { return given, name == "DIGESTLOCK_APPLICATION_NAMESPACES" }}
		if _, err := flags.Parse(env, args, 0); err != nil || !slices.Equal(kube.o.Namespaces, []string{"team-a", "team-b"}) {
			t.Errorf("%q, %v: %q, %v", given, args, kube.o.Namespaces, err)
		}
	}
}
