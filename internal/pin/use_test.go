package pin

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestUses: every reason, in output order, the same before and after Apply.
func TestUses(t *testing.T) {
	t.Parallel()
	objects := decode(t, `apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: d, annotations: {image: 'x.io/a:latest'}, labels: {appImage: 'x:latest'}}
  spec:
    initContainers: [{image: nginx}, {image: 'x:v1'}, {image: 'x.io/y@`+digest+`'}]
    containers:
    - {image: 'ex.io/x:latest', debugImage: 'x.io/debug'}
    - {image: 'in.io/x'}
    - {image: ''}
    - {image: null}
    - {image: 1}
    - {image: '${X}'}
    - {image: 'x:$(V)'}
    - {image: '{{x}}'}
    - {image: 'ko://x.io/y'}
    - {image: {repository: x}}
    volumes: [{image: {reference: vol}}]
- {apiVersion: kyverno.io/v1, kind: ClusterPolicy, metadata: {name: k}, spec: {containers: [{image: '!*:latest'}]}}
- {apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: {containers: [{image: x}, {image: 'A B'}]}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {image: 'x:latest'}}
---
apiVersion: a.io/v1
kind: App
metadata: {name: a}
spec: {image: 'x.io/b', imageName: 'x:latest', sidecarImage: 'localhost/x', logoImage: logo, heroImage: 'https://x.io/y.png', baseImage: x/y, image2: 'x:1', bootImage: 'A:b', images: ['x:1']}
`)
	p, err := New(objects, Policy{
		Tags: latest, Include: []string{"nginx", "ex.io/**", "vol"}, Exclude: []string{"ex.io/*"}, ExcludeKinds: []string{"Job"},
	})
	if err != nil {
		t.Fatal(err)
	}
	const c = "spec.containers["
	want := []Use{
		{"Deployment/d", "spec.initContainers[0].image", "nginx", "index.docker.io/library/nginx:latest", ""},
		{"Deployment/d", "spec.initContainers[1].image", "x:v1", "index.docker.io/library/x:v1", "fixed tag"},
		{"Deployment/d", "spec.initContainers[2].image", "x.io/y@" + digest, "x.io/y@" + digest, "has a digest"},
		{"Deployment/d", c + "0].image", "ex.io/x:latest", "ex.io/x:latest", "excluded by exclude-images"},
		{"Deployment/d", c + "0].debugImage", "x.io/debug", "x.io/debug:latest", "not a field digestlock knows, see image-fields"},
		{"Deployment/d", c + "1].image", "in.io/x", "in.io/x:latest", "not in include-images"},
		{"Deployment/d", c + "2].image", "", "", "empty"},
		{"Deployment/d", c + "3].image", "null", "", "empty"},
		{"Deployment/d", c + "4].image", "1", "", "not a text"},
		{"Deployment/d", c + "5].image", "${X}", "", "template"},
		{"Deployment/d", c + "6].image", "x:$(V)", "", "template"},
		{"Deployment/d", c + "7].image", "{{x}}", "", "template"},
		{"Deployment/d", c + "8].image", "ko://x.io/y", "", "built by ko"},
		{"Deployment/d", "spec.volumes[0].image.reference", "vol", "index.docker.io/library/vol:latest", ""},
		{"ClusterPolicy/k", c + "0].image", "!*:latest", "", "pattern of a policy"},
		{"Job/j", c + "0].image", "x", "index.docker.io/library/x:latest", "kind excluded"},
		{"Job/j", c + "1].image", "A B", "", "kind excluded"},
		{"App/a", "spec.image", "x.io/b", "x.io/b:latest", "not a field digestlock knows, see image-fields"},
		{"App/a", "spec.imageName", "x:latest", "index.docker.io/library/x:latest", "not a field digestlock knows, see image-fields"},
		{"App/a", "spec.sidecarImage", "localhost/x", "localhost/x:latest", "not a field digestlock knows, see image-fields"},
	}
	if diff := cmp.Diff(want, p.Uses()); diff != "" {
		t.Errorf("Uses (-want +got):\n%s", diff)
	}
	if err := p.Apply(all(p), TagAndDigest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, p.Uses()); diff != "" {
		t.Errorf("Uses after Apply (-want +got):\n%s", diff)
	}
}

func TestJobs(t *testing.T) {
	t.Parallel()
	p, err := New(decode(t, `{apiVersion: batch/v1, kind: Job, metadata: {name: b}, spec: {containers: [{image: x}, {image: y}]}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: fixed}, spec: {containers: [{image: 'x:v1'}]}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: c}, spec: {jobTemplate: {spec: {containers: [{image: x}]}}}}
---
{apiVersion: batch.volcano.sh/v1alpha1, kind: Job, metadata: {name: v}, spec: {containers: [{image: x}]}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: hook, annotations: {argocd.argoproj.io/hook: PreSync}}, spec: {containers: [{image: x}]}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: replaced, annotations: {argocd.argoproj.io/sync-options: 'Prune=false,Replace=true'}}, spec: {containers: [{image: x}]}}
---
{apiVersion: batch/v1, kind: Job, metadata: {generateName: named-}, spec: {containers: [{image: x}]}}
---
{apiVersion: v1, kind: List, items: [{apiVersion: batch/v1, kind: Job, metadata: {name: a}, spec: {containers: [{image: x}]}}]}
---
{apiVersion: argoproj.io/v1alpha1, kind: Sensor, spec: {resource: {apiVersion: batch/v1, kind: Job, metadata: {name: s}, spec: {containers: [{image: x}]}}}}
`), Policy{Tags: latest})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"Job/b", "Job/a"}, p.Jobs()); diff != "" {
		t.Errorf("Jobs (-want +got):\n%s", diff)
	}
}

// TestLongValue: an invalid value is quoted up to a readable length, and the part that is wrong with it as well.
func TestLongValue(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 5000)
	for value, want := range map[string]string{
		"x:" + long:              `Pod spec.containers[0].image: image "x:` + long[:78] + `…": "` + long[:80] + `…" is not a tag`,
		"Ä":                      `Pod spec.containers[0].image: image "Ä": "Ä" is not a repository path component`,
		strings.Repeat("a", 300): `Pod spec.containers[0].image: image "` + strings.Repeat("a", 40) + `…": name is longer than 255 characters`,
	} {
		_, err := New(decode(t, "kind: Pod\nspec: {containers: [{image: '"+value+"'}]}\n"), Policy{Tags: latest})
		if err == nil || err.Error() != want {
			t.Errorf("%.20s…: %v\nwant %s", value, err, want)
		}
	}
}
