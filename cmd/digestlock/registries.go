package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/credentials"
	"github.com/digestlock/digestlock/internal/registry"
)

// maxQPS is more than any registry takes, and what is derived of it still a number.
const maxQPS = 1e6

// registryFlags adds the flags that say which registries may be asked, and how. Who is asked follows from images, and
// so from whoever can write an Application: these flags are the operator's word.
func registryFlags(flags *cli.Flags) *registry.Options {
	o := &registry.Options{}
	flags.StringSliceVar(&o.Insecure, "insecure-registry", nil, "host[:port] that may be asked over plain http (repeatable)")
	flags.Func("allow-registry", "`glob` of host[:port] that images may come from, such as ghcr.io or *.example.com (repeatable); none allows all. "+
		"One without wildcard may have a private or loopback address", addHosts(&o.Allow))
	flags.Func("allow-realm", "`glob` of host[:port] that may get the credentials of any registry for a token (repeatable); "+
		"not needed for the registry itself and hosts of its domain", addHosts(&o.AllowRealm))
	flags.BoolVar(&o.AllowPrivate, "allow-private-registries", false, "connect to private addresses (RFC 1918, fc00::/7, 100.64.0.0/10) for all registries")
	flags.Func("registry-qps", "`number` of requests a second to one registry, and twice as many at once (default 50)", func(v string) (err error) {
		if o.QPS, err = strconv.ParseFloat(v, 64); err != nil || !(o.QPS > 0 && o.QPS <= maxQPS) { // NaN compares with nothing
			return fmt.Errorf("%q is no number above 0, %.0f at most", v, maxQPS)
		}
		return nil
	})
	return o
}

// addHosts adds patterns, one or several with commas between them, as a variable of the environment has them.
func addHosts(l *registry.Hosts) func(string) error {
	return func(v string) error {
		if v == "" {
			return nil // as if it were not given
		}
		for p := range strings.SplitSeq(v, ",") {
			*l = append(*l, strings.TrimSpace(p))
		}
		return l.Check()
	}
}

// credentialsFlags adds the flags that say where registry credentials come from.
func credentialsFlags(flags *cli.Flags, o *credentials.Options) {
	flags.StringVar(&o.Dir, "credentials-dir", "",
		"directory with PROJECT/config.json for one Argo CD project and default/config.json for all; in place of DOCKER_CONFIG")
	flags.StringSliceVar(&o.Clouds, "cloud-credentials", nil, "identities of this process to log in to their registries with, of "+
		strings.Join(credentials.Clouds(), ", ")+", where no config.json has an entry (default none)")
}

func newKeychain(o credentials.Options) (*credentials.Keychain, error) {
	k, err := credentials.New(o)
	if err != nil {
		return nil, cli.Usage("for example: --cloud-credentials google,ecr", "--cloud-credentials: %w", err)
	}
	return k, nil
}
