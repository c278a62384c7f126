package door

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/digestlock/digestlock/internal/access"
	"github.com/digestlock/digestlock/internal/api"
	"github.com/digestlock/digestlock/internal/fault"
	"github.com/digestlock/digestlock/internal/hook"
)

const (
	// maxEvent bounds the body of a webhook, in bytes. The largest events known are some ten KiB.
	maxEvent = 1 << 20
	// eventRate and eventBurst bound the events of one sender that make anything stale, in events a second. A CI that
	// pushes all of a company's images at once stays below.
	eventRate  = 20
	eventBurst = 200
	// settleTime is how much later images are forgotten again whose registry tells of a push before the tag has moved. It
	// writes the tag at once, which is a few requests where it keeps its images in an object store.
	settleTime = time.Second
)

// What a webhook came to, in the metric.
const (
	flushed   = "flushed"   // it named images, and they were made stale
	ignored   = "ignored"   // it was of no interest
	refused   = "refused"   // it did not authenticate, or came too often
	malformed = "malformed" // it was not understood
)

// webhook takes events of registries. It answers once what they name is forgotten and does not wait until the registry
// was asked again: senders give up after a few seconds.
func (d *Door) webhook() http.Handler {
	limits := map[string]*rate.Limiter{}
	for _, sender := range hook.Senders() {
		limits[sender] = rate.NewLimiter(eventRate, eventBurst)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sender := r.PathValue("sender")
		if !hook.Known(sender) {
			d.Refuse(w, http.StatusNotFound, fault.New(fault.Webhook, "POST /webhook/ and one of "+strings.Join(hook.Senders(), ", "), "no sender %q", sender))
			return
		}
		secrets, status, err := d.webhookSecrets(sender)
		if err != nil {
			d.dismiss(w, sender, refused, status, err)
			return
		}
		req, err := readEvent(w, r)
		if err != nil {
			d.dismiss(w, sender, malformed, http.StatusRequestEntityTooLarge, err)
			return
		}
		if status, err := d.authenticate(r.Context(), sender, req, secrets); err != nil {
			d.dismiss(w, sender, refused, status, err)
			return
		}
		d.event(w, sender, req, limits[sender])
	})
}

// event acts on a request that authenticated.
func (d *Door) event(w http.ResponseWriter, sender string, req hook.Request, limit *rate.Limiter) {
	found, err := hook.Parse(sender, req)
	if err != nil && len(found) == 0 {
		d.o.Log.Warn("webhook not understood", "sender", sender, "error", err)
		status := http.StatusBadRequest
		if hook.Queues(sender) {
			status = http.StatusOK // or the events behind this one would never come
		}
		d.dismiss(w, sender, malformed, status, explain(sender, err))
		return
	}
	if len(found) == 0 {
		d.events.WithLabelValues(sender, ignored).Inc()
		d.o.Log.Debug("webhook ignored, it names no tag that changed", "sender", sender)
		Answer(w, api.WebhookResponse{Images: []string{}, Refreshed: new(0)})
		return
	}
	if !limit.Allow() {
		w.Header().Set("Retry-After", "1")
		d.dismiss(w, sender, refused, http.StatusTooManyRequests, fault.New(fault.Webhook, "nothing: what it named is asked for again within its TTL", "too many events"))
		return
	}
	res := api.WebhookResponse{Error: api.ToProblem(err)}
	for _, t := range found {
		res.Images = append(res.Images, t.String())
	}
	res.Refreshed = d.invalidate(found)
	if hook.Early(sender) {
		d.later(settleTime, func() { d.o.Backend.Invalidate(found) })
	}
	d.events.WithLabelValues(sender, flushed).Inc()
	d.o.Log.Info("webhook", "sender", sender, "images", len(res.Images), "refreshed", res.Refreshed, "first", res.Images[0])
	answer(w, http.StatusAccepted, res)
}

// later calls f after the delay, unless the server ends before. Serve waits for it.
func (d *Door) later(delay time.Duration, f func()) {
	d.pending.Go(func() {
		select {
		case <-time.After(delay):
			f()
		case <-d.ended:
		}
	})
}

// explain adds the way out that most senders need once.
func explain(sender string, err error) error {
	if errors.Is(err, hook.ErrNoRegistry) {
		return &fault.Error{Err: err, Code: fault.Webhook, Hint: "add ?registry=HOST to the webhook's URL, as it stands in your manifests"}
	}
	return &fault.Error{Err: err, Code: fault.Webhook, Hint: "docs/webhooks.md says what to send as " + sender}
}

// dismiss counts and refuses an event.
func (d *Door) dismiss(w http.ResponseWriter, sender, outcome string, status int, err error) {
	d.events.WithLabelValues(sender, outcome).Inc()
	d.Refuse(w, status, err)
}

func readEvent(w http.ResponseWriter, r *http.Request) (hook.Request, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEvent))
	return hook.Request{Header: r.Header, Query: r.URL.Query(), Body: body, Secret: r.PathValue("secret")}, err
}

// webhookSecrets reads a sender's secrets anew for each event, so that they can be rotated.
func (d *Door) webhookSecrets(sender string) (secrets []string, status int, err error) {
	err = fs.ErrNotExist
	if d.o.Keys.WebhookSecrets != "" {
		secrets, err = api.Tokens(filepath.Join(d.o.Keys.WebhookSecrets, sender))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, http.StatusForbidden, fault.New(fault.WebhookSecret,
			fmt.Sprintf("put a secret into a file named %s in the directory of %s --webhook-secrets", sender, d.o.Command),
			"no secret is configured for %s, this route is closed", sender)
	case err != nil:
		d.o.Log.Error("webhook secrets not read", "sender", sender, "error", err)
		return nil, http.StatusServiceUnavailable, d.unavailable("read the secrets of this sender")
	}
	return secrets, 0, nil
}

// authenticate returns an error, with the status to answer, unless the request comes from somebody with a secret.
func (d *Door) authenticate(ctx context.Context, sender string, req hook.Request, secrets []string) (status int, err error) {
	if !hook.ByGoogle(sender) {
		if hook.Verify(sender, req, secrets) {
			return 0, nil
		}
		return http.StatusUnauthorized, fault.New(fault.WebhookSecret,
			fmt.Sprintf("give the sender the secret in the %s's file %s; docs/webhooks.md says where", d.o.Name, sender),
			"wrong or missing secret")
	}
	if d.o.Keys.GoogleEmail == nil {
		return http.StatusForbidden, fault.New(fault.WebhookSecret,
			"start "+d.o.Command+" with --webhook-audience, the audience of the push subscription", "this %s does not check Google's identity tokens, this route is closed", d.o.Name)
	}
	email, err := d.o.Keys.GoogleEmail(ctx, strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "))
	if errors.Is(err, access.ErrUnavailable) {
		d.o.Log.Warn("token not checked", "error", err)
		return http.StatusServiceUnavailable, d.unavailable("check this token now")
	}
	if err != nil {
		return http.StatusUnauthorized, err
	}
	if !slices.Contains(secrets, email) {
		return http.StatusUnauthorized, fault.New(fault.WebhookSecret,
			"put the service account of the push subscription into the "+d.o.Name+"'s file "+sender,
			"%q is no service account that may send this", cmp.Or(email, "nobody"))
	}
	return 0, nil
}
