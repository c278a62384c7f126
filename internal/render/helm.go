package render

import (
	"bytes"
	"path/filepath"

	"sigs.k8s.io/kustomize/api/types"

	"github.com/digestlock/digestlock/internal/fault"
)

// Helm says how charts are inflated. The zero value is that they are not.
type Helm struct {
	Command     string   // absolute path of the operator's helm binary; "" refuses charts
	KubeVersion string   // of the cluster that templates see, such as "1.36.1"; "" leaves the chart's own
	APIVersions []string // the same, as [GROUP/]VERSION/KIND
}

func (h Helm) config() types.HelmConfig {
	return types.HelmConfig{Enabled: h.Command != "", Command: h.Command, KubeVersion: h.KubeVersion, ApiVersions: h.APIVersions}
}

// inflator is the kind of a generator that runs helm.
const inflator = "HelmChartInflationGenerator"

// charts refuses what helm would fetch, and charts outside of the kustomization's directory: helm is not in the jail.
func (f file) charts(k types.Kustomization) error {
	const hint = "commit the chart into the repository, below its kustomization: helm fetches nothing here"
	k.FixKustomization()
	homes := []string{}
	if k.HelmGlobals != nil {
		homes = append(homes, k.HelmGlobals.ChartHome, k.HelmGlobals.ConfigHome)
	}
	for _, c := range k.HelmCharts {
		if c.Repo != "" {
			return fault.New(fault.RemoteBase, hint, "%s: helm chart %q comes from a repository", f.name, c.Name)
		}
		homes = append(homes, c.Name)
	}
	for _, h := range homes {
		if h != "" && !filepath.IsLocal(h) {
			return fault.New(fault.OutsideRepository, hint, "%s: helm chart or chartHome %q leads out of its directory", f.name, h)
		}
	}
	return nil
}

// hiddenChart refuses a generator's own file that names a chart, where [file.charts] does not look.
func (f file) hiddenChart() error {
	if !bytes.Contains(f.data, []byte(inflator)) {
		return nil
	}
	return fault.New(fault.RemoteBase, "name the chart in helmCharts of the kustomization", "%s: is a generator of kind %s", f.name, inflator)
}
