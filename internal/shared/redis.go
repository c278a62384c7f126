package shared

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// pause is how long Redis is left alone after it failed.
const pause = 5 * time.Second

// ParseURL returns where a Redis is: rediss://[USER@]HOST[:PORT][/DATABASE], or redis:// without TLS.
func ParseURL(text string) (*redis.Options, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not a URL") // url's own text may hold a password
	}
	if _, secret := u.User.Password(); secret {
		return nil, errors.New("a password in the URL, where everybody sees it")
	}
	if u.RawQuery != "" || u.Host == "" || u.Scheme != "redis" && u.Scheme != "rediss" {
		return nil, errors.New("not of the form rediss://[USER@]HOST[:PORT][/DATABASE]")
	}
	return redis.ParseURL(text)
}

// ReadPassword makes o log in with the password in a file, read again for each connection.
func ReadPassword(o *redis.Options, file string) error {
	user := o.Username
	o.CredentialsProviderContext = func(context.Context) (string, string, error) {
		password, err := readPassword(file)
		return user, password, err
	}
	_, err := readPassword(file)
	return err
}

// ReadCA makes o, which is for TLS, trust the certificates in a file and no others.
func ReadCA(o *redis.Options, file string) error {
	pem, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", file)
	}
	o.TLSConfig.RootCAs = pool
	return nil
}

func readPassword(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	password := strings.TrimRight(string(data), "\r\n")
	if password == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return password, nil
}

// connect returns a client that fails fast: whoever waits for it could ask a registry instead.
func connect(o Options) *redis.Client {
	logging.Disable() // to stderr, in a format of its own; health logs
	c := *o.Redis
	c.MaxRetries, c.DialerRetries = -1, 1
	c.DialTimeout, c.ReadTimeout, c.WriteTimeout, c.PoolTimeout = o.Timeout, o.Timeout, o.Timeout, o.Timeout
	c.ContextTimeoutEnabled = true
	c.DisableIdentity = true
	c.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(&c)
}

var errResting = errors.New("redis failed a moment ago")

// run runs a script within the timeout, unless Redis failed a moment ago.
func (r *Resolver) run(ctx context.Context, script string, keys []string, args ...any) (any, error) {
	if !r.health.try(time.Now(), r.o.Timeout) {
		return nil, errResting
	}
	within, cancel := context.WithTimeoutCause(ctx, r.o.Timeout, fmt.Errorf("no answer within %v", r.o.Timeout))
	defer cancel()
	reply, err := redis.NewScript(script).Run(within, r.client, keys, args...).Result()
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err() // the caller's impatience says nothing about Redis
	}
	if err != nil && within.Err() != nil {
		err = context.Cause(within)
	}
	r.health.report(time.Now(), err)
	return reply, err
}

// health is a circuit breaker: after a failure nobody calls for a while, then one does.
type health struct {
	log *slog.Logger

	mu    sync.Mutex
	down  bool
	until time.Time // nobody calls before
}

// try reports whether to call. When Redis was down, the others wait until this call is over.
func (h *health) try(now time.Time, timeout time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.down {
		return true
	}
	if now.Before(h.until) {
		return false
	}
	h.until = now.Add(timeout)
	return true
}

// report notes how a call ended, and logs a change.
func (h *health) report(now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.down
	h.down = err != nil
	switch {
	case err != nil:
		h.until = now.Add(pause)
		if !was {
			h.log.Warn("shared cache lost, asking registries alone", "error", err)
		}
	case was:
		h.log.Info("shared cache back")
	}
}

func (h *health) metric() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down {
		return 1
	}
	return 0
}
