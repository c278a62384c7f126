package image

import (
	"regexp"
	"strings"
	"testing"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParse(t *testing.T) {
	t.Parallel()
	tests := []struct{ in, want, name string }{
		{"nginx", "index.docker.io/library/nginx:latest", "nginx"},
		{"nginx:1.27", "index.docker.io/library/nginx:1.27", "nginx"},
		{"docker.io/nginx", "index.docker.io/library/nginx:latest", "docker.io/nginx"},
		{"grafana/loki", "index.docker.io/grafana/loki:latest", "grafana/loki"},
		{"ghcr.io/acme/worker:main", "ghcr.io/acme/worker:main", "ghcr.io/acme/worker"},
		{"localhost/x", "localhost/x:latest", "localhost/x"},
		{"localhost:5000/a/b__c-d:V1.2_x", "localhost:5000/a/b__c-d:V1.2_x", "localhost:5000/a/b__c-d"},
		{"10.0.0.1:5000/a", "10.0.0.1:5000/a:latest", "10.0.0.1:5000/a"},
		{"r2.5e/a", "r2.5e/a:latest", "r2.5e/a"},
		{"[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a"},
		{"nginx@" + digest, "index.docker.io/library/nginx@" + digest, "nginx"},
		{"nginx@sha512:" + strings.Repeat("0", 128), "index.docker.io/library/nginx@sha512:" + strings.Repeat("0", 128), "nginx"},
		{"nginx:1@" + digest, "index.docker.io/library/nginx:1@" + digest, "nginx"},
	}
	for _, tt := range tests {
		got, err := Parse(tt.in)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.in, err)
			continue
		}
		if got.String() != tt.want || got.Name != tt.name {
			t.Errorf("Parse(%q) = %q named %q, want %q named %q", tt.in, got, got.Name, tt.want, tt.name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"", " ", "nginx:", "Nginx", "ghcr.io/Acme/x", "ghcr.io/../x", "ghcr.io//x", "ghcr.io/x/", "evil.com:443/../x",
		"a b", "nginx\n", "nginx:la test", "nginx@sha256:abc", "nginx@md5:0123", "ghcr.io/аcme/x", "-x.io/a",
		"https://ghcr.io/x", "127.1/a", "0x7f.1/a", "127.0.0.0x1/a", "2130706433:443/a", "0x7f000001:443/a", "010.0.0.1/a", "ghcr.io./a",
		"evil.com:443/%2e%2e/x", "evil.com/a/../b", "[::1%eth0]/a", "nginx@sha256:" + strings.Repeat("0", 63), "nginx@" + digest + "0", "nginx@sha256:" + strings.Repeat("A", 64), "${IMAGE}", "ghcr.io/" + strings.Repeat("a", 300), "nginx:" + strings.Repeat("a", 129),
	} {
		if got, err := Parse(in); err == nil {
			t.Errorf("Parse(%q) = %+v, want an error", in, got)
		}
	}
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"nginx": "index.docker.io/library/nginx", "nginx:latest": "index.docker.io/library/nginx:latest",
		"localhost:5000/latest": "localhost:5000/latest", "ghcr.io/acme/server:v1": "ghcr.io/acme/server:v1",
		"ghcr.io/acme/server:latest@sha256:" + strings.Repeat("1", 64): "", "../x": "",
	} {
		got, err := ParseTarget(in)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("ParseTarget(%q) = %s, %v, want %q", in, got, err, want)
		}
		if again, err := ParseTarget(got.String()); want != "" && (err != nil || again.EveryTag != got.EveryTag || again.Ref.String() != got.Ref.String()) {
			t.Errorf("ParseTarget(%q) = %+v, %v, want %+v", got, again, err, got)
		}
	}
}

func TestMutable(t *testing.T) {
	t.Parallel()
	tests := []struct {
		tags Tags
		in   string
		want bool
	}{
		{Tags{"latest"}, "nginx", true},
		{Tags{"latest"}, "nginx:latest", true},
		{Tags{"latest"}, "nginx:v1.2.3", false},
		{Tags{"latest"}, "nginx:latest@" + digest, false},
		{Tags{"latest"}, "nginx@" + digest, false},
		{Tags{"latest", "dev-*"}, "nginx:dev-42", true},
		{Tags{"*"}, "nginx:v1.2.3", true},
		{nil, "nginx", false},
	}
	for _, tt := range tests {
		r, err := Parse(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if got := tt.tags.Mutable(r); got != tt.want {
			t.Errorf("%v.Mutable(%q) = %v, want %v", tt.tags, tt.in, got, tt.want)
		}
	}
}

func TestTagsCheck(t *testing.T) {
	t.Parallel()
	for pattern, ok := range map[string]bool{
		"latest": true, "dev-*": true, "*": true, "v[0-9]?": true, "": false, " latest": false, "latest,main": false, "[a": false, "a/b": false,
	} {
		if err := (Tags{"x", pattern}).Check(); (err == nil) != ok {
			t.Errorf("Check(%q) = %v, want ok = %v", pattern, err, ok)
		}
	}
}

// FuzzParse: what is accepted survives a round trip through its normal form, and the author's name is a prefix of
// what the author wrote, so that a rewrite never invents a name.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"nginx", "a.b/c:d", "localhost:5000/x@" + digest, "[::1]:1/a", "x:y@z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		checkParts(t, s)
		r, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(r.String())
		if err != nil || again.String() != r.String() {
			t.Errorf("Parse(%q) = %q, which parses to %q, %v", s, r, again, err)
		}
		if !strings.HasPrefix(s, r.Name) {
			t.Errorf("Parse(%q).Name = %q, not a prefix", s, r.Name)
		}
	})
}

// parts are what is checked by hand, and the patterns that say what it is.
var parts = map[string]struct {
	is      func(string) bool
	pattern *regexp.Regexp
	longest int
}{
	"digest":    {IsDigest, regexp.MustCompile(`^sha256:[a-f0-9]{64}$`), digestLength},
	"tag":       {isTag, regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]*$`), maxTag},
	"component": {isComponent, regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`), maxName},
	"port":      {isPort, regexp.MustCompile(`^[0-9]{1,5}$`), maxName},
	"host": {isName, regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)` +
		`(?:\.(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?))*$`), maxName},
}

func checkParts(t *testing.T, s string) {
	t.Helper()
	for name, part := range parts {
		if got, want := part.is(s), len(s) <= part.longest && part.pattern.MatchString(s); got != want && len(s) <= maxName {
			t.Errorf("%q is a %s: %v, want %v", s, name, got, want)
		}
	}
}

// TestParts: every text of up to six of the characters that matter is what its pattern says.
func TestParts(t *testing.T) {
	t.Parallel()
	texts := []string{""}
	for range 6 {
		for _, s := range texts {
			checkParts(t, s)
		}
		var longer []string
		for _, s := range texts {
			for _, c := range []string{"a", "Z", "7", ".", "_", "-", ":"} {
				longer = append(longer, s+c)
			}
		}
		texts = longer
	}
	for c := range 256 {
		checkParts(t, string([]byte{byte(c)}))
		checkParts(t, "a"+string([]byte{byte(c)})+"a")
		checkParts(t, digest[:len(digest)-1]+string([]byte{byte(c)}))
	}
	for _, s := range []string{digest, digest[1:], digest[:len(digest)-1], "a___b", "a---b", "12345", "123456", "é", "a\n", strings.Repeat("a", maxTag+1)} {
		checkParts(t, s)
	}
}

func BenchmarkParseFull(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseFull("registry.example.com:5000/acme/server-image:latest"); err != nil || !IsDigest(digest) {
			b.Fatal(err)
		}
	}
}
