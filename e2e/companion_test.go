package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

const (
	image          = "backend/server:latest"
	serviceAccount = "digestlock-companion"
	author         = "digestlock" // of the companion's commits
	fleetSize      = 500
)

// installation is an Argo CD's cluster, everything that the companion works with, and two companions, one of which
// leads. Nothing of Argo CD runs in it: what renders report is reported by the test.
type installation struct {
	*stack
	cluster    *kubeCluster
	dir        string
	kubeconfig string // of the companion's service account
	frontDoor  string // file with the token of both doors
	companions map[string]*process
	pushed     []string // digests of image, in order
}

// kubeApp is an Application, and how it is rendered.
type kubeApp struct{ namespace, name, path, mode string }

// rendered is the Application's name as Argo CD tells plugins.
func (a kubeApp) rendered() string {
	if a.namespace != "argocd" {
		return a.namespace + "_" + a.name
	}
	return a.name
}

func (a kubeApp) url() string {
	return "/apis/argoproj.io/v1alpha1/namespaces/" + a.namespace + "/applications/" + a.name
}

var followers = []kubeApp{
	{namespace: "argocd", name: "web", path: "web"},
	{namespace: "argocd", name: "api", path: "api"},
	{namespace: "team-a", name: "team", path: "team"},
}

func startInstallation(t *testing.T) *installation {
	t.Helper()
	dir := shortDir(t)
	files := map[string]string{}
	for _, path := range []string{"web", "api", "team", "prod", "other", "stray"} {
		files[path+"/kustomization.yaml"] = "resources: []\n"
	}
	in := newInstallation(t, dir, files)
	in.startResolver(t, dir, freeAddr(), "--ttl=1h") // only a flush has it ask again
	in.cluster = startCluster(t)
	in.fill(t)
	in.createFollowers(t)
	for range 2 {
		in.startCompanion(t, freeAddr(), hasty...)
	}
	return in
}

// newInstallation has a registry and a Git server, with a commit of files, and the secrets of who asks whom.
func newInstallation(t *testing.T, dir string, files map[string]string) *installation {
	t.Helper()
	in := &installation{
		stack:      &stack{registry: startRegistry(t, ""), argoCD: &argoCD{git: startGit(t, files)}, tokenFile: filepath.Join(dir, "token")},
		dir:        dir,
		frontDoor:  filepath.Join(dir, "front-door"),
		companions: map[string]*process{},
	}
	writeFile(t, in.tokenFile, "s3cret\n")
	writeFile(t, in.frontDoor, "open-sesame\n")
	return in
}

// fill puts what Argo CD and the companion need into the cluster: the default project, the repository, roles.
func (in *installation) fill(t *testing.T) {
	t.Helper()
	c := in.cluster
	c.create(t, "/api/v1/namespaces", `{apiVersion: v1, kind: Namespace, metadata: {name: team-a}}`)
	c.apply(t, "../manifests/companion/rbac.yaml", "argocd")
	c.apply(t, "../manifests/companion/rbac-applications.yaml", "team-a")
	c.create(t, "/apis/argoproj.io/v1alpha1/namespaces/argocd/appprojects", `
apiVersion: argoproj.io/v1alpha1
kind: AppProject
metadata: {name: default}
spec:
  sourceRepos: ["*"]
  sourceNamespaces: [team-a]
  destinations: [{server: "*", namespace: "*"}]
  clusterResourceWhitelist: [{group: "", kind: Namespace}]
`)
	c.create(t, "/api/v1/namespaces/argocd/secrets", fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: deploy-write, labels: {argocd.argoproj.io/secret-type: repository-write}}
stringData: {url: %q, username: %q, password: %q}
`, in.git.url, gitUser, gitPassword))
	c.create(t, "/api/v1/namespaces/argocd/configmaps", fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: argocd-tls-certs-cm}
data: {"127.0.0.1": %q}
`, readFile(t, in.git.caFile)))
	var token struct{ Status struct{ Token string } }
	c.ask(t, http.MethodPost, "/api/v1/namespaces/argocd/serviceaccounts/"+serviceAccount+"/token",
		`{apiVersion: authentication.k8s.io/v1, kind: TokenRequest, spec: {}}`, &token)
	in.kubeconfig = filepath.Join(in.dir, "kubeconfig")
	writeFile(t, in.kubeconfig, strings.ReplaceAll(readFile(t, c.kubeconfig), adminToken, token.Status.Token))
}

// createFollowers makes the Applications of the plugin, with the one of mode locked and one of another plugin.
func (in *installation) createFollowers(t *testing.T) {
	t.Helper()
	source := func(path, plugin string) string {
		return fmt.Sprintf(`{repoURL: %q, targetRevision: main, path: %s, plugin: {%s}}`, in.git.url, path, plugin)
	}
	in.createApp(t, followers[0], "source: "+source("web", "name: digestlock"))
	in.createApp(t, followers[1], fmt.Sprintf("sources: [{repoURL: %q, targetRevision: main, ref: values}, %s]", in.git.url, source("api", "name: digestlock")))
	in.createApp(t, followers[2], "source: "+source("team", "name: digestlock"))
	in.createApp(t, kubeApp{namespace: "argocd", name: "prod"}, "source: "+source("prod", "name: digestlock, parameters: [{name: mode, string: locked}]"))
	in.createApp(t, kubeApp{namespace: "argocd", name: "other"}, "source: "+source("other", "name: somebody-elses"))
}

func (in *installation) createApp(t *testing.T, a kubeApp, source string) {
	t.Helper()
	in.cluster.create(t, strings.TrimSuffix(a.url(), "/"+a.name), fmt.Sprintf(`
apiVersion: argoproj.io/v1alpha1
kind: Application
metadata: {name: %s}
spec: {project: default, destination: {name: in-cluster, namespace: default}, %s}
`, a.name, source))
}

// apply creates the objects of a file.
func (c *kubeCluster) apply(t *testing.T, file, namespace string) {
	t.Helper()
	groups := map[string]string{"ServiceAccount": "/api/v1", "Role": "/apis/rbac.authorization.k8s.io/v1", "RoleBinding": "/apis/rbac.authorization.k8s.io/v1"}
	for object := range strings.SplitSeq(readFile(t, file), "\n---\n") {
		var head struct{ Kind string }
		if err := yaml.Unmarshal([]byte(object), &head); err != nil || groups[head.Kind] == "" {
			t.Fatalf("%s: kind %q, %v", file, head.Kind, err)
		}
		c.create(t, groups[head.Kind]+"/namespaces/"+namespace+"/"+strings.ToLower(head.Kind)+"s", object)
	}
}

// hasty are flags of companions that commit at once, and notice soon that the leader is gone. With a second, a leader lost its
// lease to a disk that took as long over the API server's writes.
var hasty = []string{"--quiet-window=0", "--lease-duration=3s"}

// startCompanion starts one whose door is at an address.
func (in *installation) startCompanion(t *testing.T, addr string, flags ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(binDir, "digestlock-companion"), append([]string{
		"--kubernetes", "--leader-elect", "--kubeconfig", in.kubeconfig, "--application-namespaces", "team-a",
		"--resolver", in.api, "--resolver-token-file", in.tokenFile,
		"--listen", addr, "--token-file", in.frontDoor,
	}, flags...)...)
	cmd.Env = []string{"HOME=" + in.dir}
	log := in.companionLog(addr)
	if in.companions[addr] == nil {
		showLog(t, log)
	}
	p := start(t, cmd, log)
	p.waitReady(t, func(ctx context.Context) error { return checkOK(ctx, "http://"+addr+"/readyz") })
	in.companions[addr] = p
}

func (in *installation) companionLog(addr string) string {
	return filepath.Join(in.dir, strings.ReplaceAll(addr, ":", "-")+".log")
}

// holder is who holds the lease; "" for nobody.
func (in *installation) holder(t *testing.T) string {
	t.Helper()
	var leases struct {
		Items []struct {
			Spec struct{ HolderIdentity string }
		}
	}
	in.cluster.read(t, "/apis/coordination.k8s.io/v1/namespaces/argocd/leases", &leases)
	if len(leases.Items) != 1 {
		return ""
	}
	return leases.Items[0].Spec.HolderIdentity
}

// leader waits until the lease is held by one that runs, and returns its address and that of the other.
func (in *installation) leader(t *testing.T) (leader, follower string) {
	t.Helper()
	await(t, func() error {
		holder := in.holder(t)
		leader, follower = holder[strings.LastIndex(holder, "_")+1:], ""
		for addr, p := range in.companions {
			if addr != leader {
				follower = addr
			}
			select {
			case <-p.done:
				return fmt.Errorf("%s has ended: %v", addr, p.err)
			default:
			}
		}
		if in.companions[leader] == nil {
			return fmt.Errorf("the lease is held by %q, which is no address of ours", holder)
		}
		return nil
	})
	return leader, follower
}

// render reports a complete render of a path at the tip of main.
func (in *installation) render(t *testing.T, a kubeApp) {
	t.Helper()
	body, err := json.Marshal(map[string]any{
		"images": []string{in.registry.image(image)},
		"source": map[string]any{
			"project": "default", "application": a.rendered(), "repoURL": in.git.url, "targetRevision": "main", "path": a.path, "mode": a.mode,
			"revision": in.git.head(t), "renderedAt": time.Now(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if status, answer := in.call(t, http.MethodPost, "/v1/resolve", string(body), "s3cret"); status != http.StatusOK || strings.Contains(answer, `"error"`) {
		t.Fatalf("render of %s: %d %s", a.path, status, answer)
	}
}

// pushImage moves the tag.
func (in *installation) pushImage(t *testing.T) (digest string) {
	t.Helper()
	digest = in.registry.push(t, image)
	in.pushed = append(in.pushed, digest)
	return digest
}

// flushed runs digestlock flush against a companion, as CI does after a push.
func (in *installation) flushed(t *testing.T, addr string) error {
	t.Helper()
	return in.flushReference(t, addr, in.registry.image(image))
}

func (in *installation) flushReference(t *testing.T, addr, reference string) error {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(binDir, "digestlock"),
		"flush", "--server", "http://"+addr, "--token-file", in.frontDoor, reference).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

func (in *installation) mustFlush(t *testing.T, addr string) {
	t.Helper()
	if err := in.flushed(t, addr); err != nil {
		t.Fatalf("digestlock flush: %v", err)
	}
}

// tip is the commit of main, read without a process so that waiting for it costs nothing.
func (in *installation) tip(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(readFile(t, filepath.Join(in.git.bare, "refs/heads/main")))
}

// pushToCommit pushes the image, flushes a companion, and returns the new digest and how long after the push the Git
// server had a commit.
func (in *installation) pushToCommit(t *testing.T, addr string) (digest string, took time.Duration) {
	t.Helper()
	before := in.tip(t)
	digest = in.pushImage(t)
	began := time.Now()
	flushed := make(chan error, 1)
	go func() { flushed <- in.flushed(t, addr) }()
	await(t, func() error {
		if in.tip(t) == before {
			return errors.New("no commit after the flush")
		}
		took = time.Since(began)
		return nil
	})
	if err := <-flushed; err != nil {
		t.Errorf("digestlock flush: %v", err)
	}
	return digest, took
}

// kubePin is the only pin of a lock.
type kubePin struct {
	Image, Digest, ResolvedAt string
	Hold                      *struct{ Rejected, Reason, Until string }
}

// pin is the pin in the lock of a path at a revision, the zero value while there is no lock.
func (in *installation) pin(t *testing.T, revision, path string) kubePin {
	t.Helper()
	return in.pinOf(t, revision, path, in.registry.image(image))
}

// pinOf is the pin of an image, which must be the lock's only one.
func (in *installation) pinOf(t *testing.T, revision, path, reference string) kubePin {
	t.Helper()
	name := path + "/digest-lock.yaml"
	if git(t, in.git.bare, "ls-tree", revision, name) == "" {
		return kubePin{}
	}
	var file struct {
		APIVersion, Kind string
		Pins             []kubePin
	}
	text := git(t, in.git.bare, "show", revision+":"+name)
	if err := yaml.UnmarshalStrict([]byte(text), &file); err != nil || len(file.Pins) != 1 || file.Pins[0].Image != reference {
		t.Fatalf("%s at %s: %v\n%s", name, revision, err, text)
	}
	return file.Pins[0]
}

// wantPins checks the locks of all that follow, at the tip.
func (in *installation) wantPins(t *testing.T, digest string) {
	t.Helper()
	for _, a := range followers {
		if p := in.pin(t, "main", a.path); p.Digest != digest || p.Hold != nil {
			t.Errorf("lock of %s has %+v, want %s", a.path, p, digest)
		}
	}
}

// commitsSince lists who made the commits since one, oldest first.
func (in *installation) commitsSince(t *testing.T, commit string) []string {
	t.Helper()
	return strings.Fields(git(t, in.git.bare, "log", "--reverse", "--format=%an", commit+"..main"))
}

// awaitingRefresh counts the Applications of Argo CD's own namespace, of a prefix, that are asked to look at Git.
func (in *installation) awaitingRefresh(t *testing.T, prefix string) (n int) {
	t.Helper()
	var apps struct {
		Items []struct {
			Metadata struct {
				Name        string
				Annotations map[string]string
			}
		}
	}
	in.cluster.read(t, "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications", &apps)
	for _, a := range apps.Items {
		if strings.HasPrefix(a.Metadata.Name, prefix) && a.Metadata.Annotations["argocd.argoproj.io/refresh"] == "normal" {
			n++
		}
	}
	return n
}

// refreshed is what the annotation asks Argo CD for.
func (in *installation) refreshed(t *testing.T, a kubeApp) string {
	t.Helper()
	var app struct {
		Metadata struct{ Annotations map[string]string }
	}
	in.cluster.read(t, a.url(), &app)
	return app.Metadata.Annotations["argocd.argoproj.io/refresh"]
}

// rest does with the annotation what Argo CD does when it has refreshed.
func (in *installation) rest(t *testing.T, a kubeApp) {
	t.Helper()
	if err := in.cluster.do(t.Context(), http.MethodPatch, a.url(), `{"metadata": {"annotations": {"argocd.argoproj.io/refresh": null}}}`); err != nil {
		t.Fatal(err)
	}
}

// awaitEvent waits for an event beside an Application that says all of the words.
func (in *installation) awaitEvent(t *testing.T, a kubeApp, kind, reason string, words ...string) {
	t.Helper()
	await(t, func() error {
		var events struct {
			Items []struct {
				Type, Reason, Message string
				InvolvedObject        struct{ Kind, Name string }
			}
		}
		in.cluster.read(t, "/api/v1/namespaces/"+a.namespace+"/events", &events)
		for _, e := range events.Items {
			if e.InvolvedObject.Kind == "Application" && e.InvolvedObject.Name == a.name && e.Type == kind && e.Reason == reason &&
				!slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(e.Message, w) }) {
				return nil
			}
		}
		return fmt.Errorf("%s/%s has no event %s %s with %q", a.namespace, a.name, kind, reason, words)
	})
}

// await polls until check returns nil.
func await(t *testing.T, check func() error) {
	t.Helper()
	awaitLong(t, 2*time.Minute, 5*time.Millisecond, check)
}

// awaitLong is await for what takes longer, by a check that takes its time.
func awaitLong(t *testing.T, patience, interval time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for err := check(); err != nil; err = check() {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(interval)
	}
}

// TestCompanionOnKubernetes: two companions with the manifests' roles beside a real API server, from the first lock to
// a fleet of Applications, over a revert and leaders that are killed.
func TestCompanionOnKubernetes(t *testing.T) {
	in := startInstallation(t)
	leader, follower := in.leader(t)
	in.adopts(t, leader)
	in.refuses(t)
	in.respects(t, leader)
	in.passesOn(t, follower)
	in.outlivesLeaders(t)
	in.servesFleet(t)
	in.stops(t)
}

// adopts: locks are begun for the Applications that use the plugin and are not locked, and follow a push.
func (in *installation) adopts(t *testing.T, companion string) {
	t.Helper()
	before := in.git.head(t)
	first := in.pushImage(t)
	for _, a := range followers {
		in.render(t, a)
	}
	in.render(t, kubeApp{namespace: "argocd", name: "prod", path: "prod", mode: "locked"})
	in.mustFlush(t, companion)
	in.wantPins(t, first)
	if got := in.commitsSince(t, before); len(got) != 1 {
		t.Errorf("commits by %q, want one for all paths", got)
	}

	for _, a := range followers {
		in.rest(t, a)
	}
	before = in.git.head(t)
	second, took := in.pushToCommit(t, companion)
	t.Logf("push to commit, %d Applications: %v", len(followers), took)
	in.wantPins(t, second)
	if got := in.commitsSince(t, before); !slices.Equal(got, []string{author}) {
		t.Errorf("commits by %q, want one by %s", got, author)
	}
	for _, a := range followers {
		await(t, func() error {
			if got := in.refreshed(t, a); got != "normal" {
				return fmt.Errorf("%s is asked for refresh %q", a.name, got)
			}
			return nil
		})
		in.awaitEvent(t, a, "Normal", "DigestAdopted", second, in.git.head(t))
	}
	for _, name := range []string{"prod", "other"} {
		if got := in.refreshed(t, kubeApp{namespace: "argocd", name: name}); got != "" {
			t.Errorf("%s is asked for refresh %q, want none", name, got)
		}
		if p := in.pin(t, "main", name); p != (kubePin{}) {
			t.Errorf("%s has a lock: %+v", name, p)
		}
	}
}

// refuses: a render that no Application of the plugin has gets no lock, whatever it says that it is.
func (in *installation) refuses(t *testing.T) {
	t.Helper()
	leader, _ := in.leader(t)
	before := in.git.head(t)
	in.render(t, kubeApp{namespace: "argocd", name: "web", path: "stray"})
	in.render(t, kubeApp{namespace: "argocd", name: "other", path: "other"})
	in.mustFlush(t, leader)
	if after := in.git.head(t); after != before {
		t.Errorf("a render that no Application has made commit %s:\n%s", after, git(t, in.git.bare, "show", after))
	}
	metrics := in.metrics(t, leader)
	if !strings.Contains(metrics, "digestlock_companion_refused_total 2\n") {
		t.Errorf("metrics do not count 2 refused renders:\n%s", metrics)
	}
}

func (in *installation) metrics(t *testing.T, addr string) string {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// respects: what a person reverts stays reverted, with one commit that says why, until the next push.
func (in *installation) respects(t *testing.T, companion string) {
	t.Helper()
	old, rejected := in.pushed[len(in.pushed)-2], in.pushed[len(in.pushed)-1]
	git(t, in.git.work, "pull", "-q", "--ff-only", "origin", "main")
	git(t, in.git.work, "revert", "--no-edit", "HEAD")
	git(t, in.git.work, "push", "-q", "origin", "main")
	revert := in.git.head(t)
	in.mustFlush(t, companion)
	in.mustFlush(t, companion) // and no more than one
	if got := in.commitsSince(t, revert); !slices.Equal(got, []string{author}) {
		t.Errorf("commits by %q after the revert, want one by %s", got, author)
	}
	for _, a := range followers {
		p := in.pin(t, "main", a.path)
		if p.Digest != old || p.Hold == nil || p.Hold.Rejected != rejected || p.Hold.Reason != "reverted in "+revert[:7]+" by Dev Eloper" {
			t.Errorf("lock of %s after the revert: %+v with hold %+v, want %s", a.path, p, p.Hold, old)
		}
		in.awaitEvent(t, a, "Warning", "DigestHeld", old, rejected, revert[:7])
	}
	next, _ := in.pushToCommit(t, companion)
	in.wantPins(t, next)
}

// passesOn: a flush at the door of the companion that does not lead is committed by the one that does.
func (in *installation) passesOn(t *testing.T, follower string) {
	t.Helper()
	digest, took := in.pushToCommit(t, follower)
	t.Logf("push to commit through the follower: %v", took)
	in.wantPins(t, digest)
	if text := in.metrics(t, follower); !strings.Contains(text, "digestlock_companion_commits_total 0\n") || !strings.Contains(text, "digestlock_flushed_references_total 0\n") {
		t.Errorf("the follower did some of it itself:\n%s", text)
	}
}

var kills = flag.Int("kills", 12, "how many leaders TestCompanionOnKubernetes kills")

// outlivesLeaders: leaders are killed at random instants while pushes go on. Another takes over, the last push lands each
// time, and no commit is doubled, wrong, or older than the one before it.
func (in *installation) outlivesLeaders(t *testing.T) {
	t.Helper()
	before, pushed := in.git.head(t), len(in.pushed)
	for range *kills {
		victim, other := in.leader(t)
		holder := in.holder(t)
		dead := make(chan time.Time, 1)
		time.AfterFunc(rand.N(2*time.Second), func() {
			in.companions[victim].cmd.Process.Kill()
			dead <- time.Now()
		})
		for in.holder(t) == holder || in.holder(t) == "" {
			in.pushImage(t)
			for _, addr := range []string{victim, other} { // CI reaches a Service, which is any of them
				if in.flushed(t, addr) == nil {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		t.Logf("the lease was taken over %v after the leader was killed", time.Since(<-dead).Round(100*time.Millisecond))
		<-in.companions[victim].done
		in.startCompanion(t, victim, hasty...)
		last := in.pushImage(t)
		await(t, func() error { return in.flushed(t, victim) })
		await(t, func() error {
			if p := in.pin(t, "main", "web"); p.Digest != last {
				return fmt.Errorf("the lock is at %s, want the last push, %s", p.Digest, last)
			}
			return nil
		})
		in.wantPins(t, last)
	}
	commits := strings.Fields(git(t, in.git.bare, "rev-list", "--reverse", "--first-parent", before+"..main"))
	at := -1
	for _, commit := range commits {
		want := "api/digest-lock.yaml\nteam/digest-lock.yaml\nweb/digest-lock.yaml"
		if files := git(t, in.git.bare, "show", "--format=", "--name-only", commit); files != want {
			t.Errorf("commit %s changes %q", commit, files)
		}
		if who := git(t, in.git.bare, "log", "-1", "--format=%an %P", commit); len(strings.Fields(who)) != 2 || !strings.HasPrefix(who, author+" ") {
			t.Errorf("commit %s is by and on %s", commit, who)
		}
		p := in.pin(t, commit, "web")
		if i := slices.Index(in.pushed, p.Digest); i <= at || p.Hold != nil {
			t.Errorf("commit %s moves the pin from push %d to %d, %+v", commit, at, i, p)
		} else {
			at = i
		}
	}
	if problems := git(t, in.git.bare, "fsck", "--strict"); strings.Contains(problems, "error") {
		t.Errorf("git fsck: %s", problems)
	}
	if mark := git(t, in.git.bare, "rev-parse", "refs/digestlock/main"); mark != in.git.head(t) {
		t.Errorf("the mark is at %s, want the last commit, %s", mark, in.git.head(t))
	}
	t.Logf("%d leaders killed, %d pushes, %d commits", *kills, len(in.pushed)-pushed, len(commits))
	if len(commits) < 2**kills {
		t.Errorf("%d commits for %d kills: leaders were killed before they did anything, and the test shows little", len(commits), *kills)
	}
}

// servesFleet: a push of an image that 500 Applications more render is one look at the registry, one commit, and a
// refresh for each of them.
func (in *installation) servesFleet(t *testing.T) {
	t.Helper()
	files := map[string]string{}
	fleet := make([]kubeApp, fleetSize)
	for i := range fleet {
		name := fmt.Sprintf("fleet-%03d", i)
		fleet[i] = kubeApp{namespace: "argocd", name: name, path: name}
		files[name+"/kustomization.yaml"] = "resources: []\n"
	}
	in.git.commit(t, "add the fleet", files)
	for _, a := range fleet {
		in.createApp(t, a, fmt.Sprintf("source: {repoURL: %q, targetRevision: main, path: %s, plugin: {name: digestlock}}", in.git.url, a.path))
		in.render(t, a)
	}
	leader, _ := in.leader(t)
	await(t, func() error {
		if err := in.flushed(t, leader); err != nil {
			return err
		}
		if n := strings.Count(git(t, in.git.bare, "ls-tree", "-r", "--name-only", "main"), "/digest-lock.yaml"); n != len(followers)+fleetSize {
			return fmt.Errorf("%d locks, want %d", n, len(followers)+fleetSize)
		}
		return nil
	})
	for _, a := range fleet {
		in.rest(t, a)
	}
	before := in.git.head(t)
	asked := in.heads(t)
	began := time.Now()
	digest, took := in.pushToCommit(t, leader)
	await(t, func() error {
		if n := in.awaitingRefresh(t, "fleet-"); n != fleetSize {
			return fmt.Errorf("%d Applications of the fleet are asked to refresh, want %d", n, fleetSize)
		}
		return nil
	})
	t.Logf("push to commit, %d Applications: %v; all asked to refresh within %v of the beginning of the push", len(followers)+fleetSize, took, time.Since(began))
	if got := in.commitsSince(t, before); !slices.Equal(got, []string{author}) {
		t.Errorf("commits by %q, want one by %s", got, author)
	}
	if n := in.heads(t) - asked; n != 1 {
		t.Errorf("the registry was asked for the tag %d times, want once", n)
	}
	if n := len(strings.Fields(git(t, in.git.bare, "show", "--format=", "--name-only", "main"))); n != fleetSize+len(followers) {
		t.Errorf("the commit changes %d files, want %d", n, fleetSize+len(followers))
	}
	in.wantPins(t, digest)
	for _, i := range []int{0, fleetSize / 2, fleetSize - 1} {
		if p := in.pin(t, "main", fleet[i].path); p.Digest != digest {
			t.Errorf("lock of %s has %+v, want %s", fleet[i].path, p, digest)
		}
	}
}

// stops: a cycle of a CronJob and companions that are asked to end do so, the leader without its lease.
func (in *installation) stops(t *testing.T) {
	t.Helper()
	once := exec.CommandContext(t.Context(), filepath.Join(binDir, "digestlock-companion"),
		"--once", "--kubernetes", "--kubeconfig", in.kubeconfig, "--application-namespaces", "team-a",
		"--resolver", in.api, "--resolver-token-file", in.tokenFile)
	if out, err := once.CombinedOutput(); err != nil {
		t.Errorf("digestlock-companion --once: %v\n%s", err, out)
	}
	leader, follower := in.leader(t)
	holder := in.holder(t)
	in.companions[leader].terminate(t)
	if in.holder(t) == holder {
		t.Errorf("the lease is held by %s, which has ended", holder)
	}
	in.companions[follower].terminate(t)
}

// heads counts how often the registry was asked where the tag stands, by us: what pushes an image asks it too.
func (in *installation) heads(t *testing.T) int {
	t.Helper()
	return strings.Count(readFile(t, in.registry.log), `"HEAD /v2/backend/server/manifests/latest HTTP/1.1" 200 0 "" "digestlock"`)
}
