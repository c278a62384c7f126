package hook

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// Fields that are not read are left out of the structures below: senders change their types (Docker Hub's times come
// as floats), and an event must not be lost by that.

func decode(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("event: %w", err)
	}
	return nil
}

func dockerHub(r Request) ([]change, error) {
	var e struct {
		PushData struct {
			Tag string `json:"tag"`
		} `json:"push_data"`
		Repository struct {
			RepoName string `json:"repo_name"`
		} `json:"repository"`
	}
	if err := decode(r.Body, &e); err != nil || e.Repository.RepoName == "" {
		return nil, err
	}
	return []change{{host: "docker.io", repository: e.Repository.RepoName, tag: e.PushData.Tag, every: true}}, nil
}

// ghcr reads GitHub's events "package" (of a repository) and "registry_package" (of an App or organization), which
// name the same thing differently. Each manifest of an index sends one of its own, with an empty tag.
func ghcr(r Request) ([]change, error) {
	type pkg struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
		Type      string `json:"package_type"`
		Version   struct {
			Container struct {
				Tag struct {
					Name string `json:"name"`
				} `json:"tag"`
			} `json:"container_metadata"`
		} `json:"package_version"`
	}
	var e struct {
		Package         *pkg `json:"package"`
		RegistryPackage *pkg `json:"registry_package"`
	}
	if err := decode(r.Body, &e); err != nil {
		return nil, err
	}
	var changes []change
	for _, p := range []*pkg{e.Package, e.RegistryPackage} {
		if p == nil || !strings.EqualFold(p.Type, "container") && !strings.EqualFold(p.Type, "docker") {
			continue
		}
		changes = append(changes, change{
			host: "ghcr.io", repository: strings.ToLower(p.Namespace + "/" + p.Name), tag: p.Version.Container.Tag.Name,
		})
	}
	return changes, nil
}

// gar reads a push of Pub/Sub's, around a message of Artifact Registry's or Container Registry's.
func gar(r Request) ([]change, error) {
	var push struct {
		Message struct {
			Data []byte `json:"data"`
		} `json:"message"`
	}
	if err := decode(r.Body, &push); err != nil {
		return nil, err
	}
	var e struct{ Action, Digest, Tag string }
	if len(push.Message.Data) == 0 {
		return nil, nil
	}
	if err := decode(push.Message.Data, &e); err != nil {
		return nil, err
	}
	if e.Action != "INSERT" && e.Action != "DELETE" {
		return nil, nil
	}
	host, repository, tag := split(e.Tag)
	if e.Tag == "" {
		host, repository, tag = split(e.Digest)
	}
	return []change{{host: host, repository: repository, tag: tag, every: e.Action == "DELETE"}}, nil
}

func ecr(r Request) ([]change, error) {
	var e struct {
		Account, Region string
		Detail          struct {
			Result     string `json:"result"`
			Repository string `json:"repository-name"`
			Tag        string `json:"image-tag"`
			Action     string `json:"action-type"`
		}
	}
	if err := decode(r.Body, &e); err != nil {
		return nil, err
	}
	d := e.Detail
	if d.Result != "SUCCESS" || d.Action != "PUSH" && d.Action != "REPLICATE" && d.Action != "DELETE" {
		return nil, nil
	}
	host := e.Account + ".dkr.ecr." + e.Region + ".amazonaws.com"
	if strings.HasPrefix(e.Region, "cn-") {
		host += ".cn"
	}
	return []change{{host: host, repository: d.Repository, tag: d.Tag, every: d.Action == "DELETE"}}, nil
}

// registryEvent is an event of distribution's, which ACR sends too.
type registryEvent struct {
	Action string `json:"action"`
	Target struct {
		Repository string `json:"repository"`
		Tag        string `json:"tag"`
	} `json:"target"`
	Request struct {
		Host string `json:"host"`
	} `json:"request"`
}

// changes: a layer's push looks like a manifest's without a tag.
func (e registryEvent) changes() []change {
	if e.Action != "push" && e.Action != "delete" {
		return nil
	}
	return []change{{
		host: e.Request.Host, repository: e.Target.Repository, tag: e.Target.Tag, every: e.Action == "delete",
	}}
}

func acr(r Request) ([]change, error) {
	var e registryEvent
	err := decode(r.Body, &e)
	return e.changes(), err
}

func distribution(r Request) ([]change, error) {
	var e struct {
		Events []registryEvent `json:"events"`
	}
	if err := decode(r.Body, &e); err != nil {
		return nil, err
	}
	var changes []change
	for _, event := range e.Events {
		changes = append(changes, event.changes()...)
	}
	return changes, nil
}

func quay(r Request) ([]change, error) {
	var e struct {
		DockerURL   string   `json:"docker_url"`
		UpdatedTags []string `json:"updated_tags"`
	}
	if err := decode(r.Body, &e); err != nil {
		return nil, err
	}
	host, repository, _ := split(e.DockerURL)
	var changes []change
	for _, tag := range e.UpdatedTags {
		changes = append(changes, change{host: host, repository: repository, tag: tag})
	}
	return changes, nil
}

// harbor reads both of Harbor's formats. A digest stands in place of the tag when there is none.
func harbor(r Request) ([]change, error) {
	type data struct {
		Resources []struct {
			Tag string `json:"tag"`
			URL string `json:"resource_url"`
		} `json:"resources"`
	}
	var e struct {
		Type      string `json:"type"`
		EventData data   `json:"event_data"` // format "Default"
		Data      data   `json:"data"`       // format "CloudEvents"
	}
	if err := decode(r.Body, &e); err != nil {
		return nil, err
	}
	deleted := e.Type == "DELETE_ARTIFACT" || e.Type == "harbor.artifact.deleted"
	if !deleted && e.Type != "PUSH_ARTIFACT" && e.Type != "harbor.artifact.pushed" {
		return nil, nil
	}
	var changes []change
	for _, res := range append(e.EventData.Resources, e.Data.Resources...) {
		host, repository, _ := split(res.URL)
		changes = append(changes, change{host: host, repository: repository, tag: res.Tag, every: deleted})
	}
	return changes, nil
}

// zot sends a CloudEvent in binary mode: its type is in the header, behind a prefix that its operator may choose.
func zot(r Request) ([]change, error) {
	kind := r.Header.Get("Ce-Type")
	deleted := strings.HasSuffix(kind, ".image.deleted")
	if !deleted && !strings.HasSuffix(kind, ".image.updated") {
		return nil, nil
	}
	var e struct{ Name, Reference string }
	if err := decode(r.Body, &e); err != nil {
		return nil, err
	}
	return []change{{repository: e.Name, tag: e.Reference, every: deleted}}, nil
}

func artifactory(r Request) ([]change, error) {
	var e struct {
		Domain    string `json:"domain"`
		EventType string `json:"event_type"`
		Origin    string `json:"jpd_origin"`
		Data      struct {
			RepoKey   string `json:"repo_key"`
			ImageName string `json:"image_name"`
			Tag       string `json:"tag"`
		} `json:"data"`
	}
	if err := decode(r.Body, &e); err != nil || e.Domain != "docker" {
		return nil, err
	}
	// "promoted" is the arrival of a tag in the repository that the event names.
	if e.EventType != "pushed" && e.EventType != "promoted" && e.EventType != "deleted" {
		return nil, nil
	}
	return []change{{
		host: hostOf(e.Origin), prefix: e.Data.RepoKey, repository: e.Data.ImageName, tag: e.Data.Tag,
		every: e.EventType == "deleted",
	}}, nil
}

func nexus(r Request) ([]change, error) {
	var e struct {
		Action    string `json:"action"`
		Component struct {
			Format, Name, Version string
		} `json:"component"`
	}
	if err := decode(r.Body, &e); err != nil || e.Component.Format != "docker" {
		return nil, err
	}
	return []change{{repository: e.Component.Name, tag: e.Component.Version, every: e.Action == "DELETED"}}, nil
}

func gitea(r Request) ([]change, error) {
	var e struct {
		Action  string `json:"action"`
		Package struct {
			Type, Name, Version string
			HTMLURL             string `json:"html_url"`
			Owner               struct{ Login string }
		} `json:"package"`
	}
	if err := decode(r.Body, &e); err != nil || e.Package.Type != "container" {
		return nil, err
	}
	p := e.Package
	return []change{{
		host: hostOf(p.HTMLURL), repository: strings.ToLower(p.Owner.Login + "/" + p.Name), tag: p.Version,
		every: e.Action == "deleted",
	}}, nil
}

// split takes a full reference apart. tag is "" when it has none.
func split(ref string) (host, repository, tag string) {
	host, rest, _ := strings.Cut(ref, "/")
	repository, _, _ = strings.Cut(rest, "@")
	repository, tag, _ = strings.Cut(repository, ":")
	return host, repository, tag
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}
