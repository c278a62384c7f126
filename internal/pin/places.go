package pin

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// containerLists are the fields whose items are containers, wherever they stand: in a Pod, in a template of a
// template, in a custom resource that embeds a pod spec.
// https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/
var containerLists = []string{"containers", "initContainers", "ephemeralContainers"}

// skippedKinds may contain a container list without running it: a CustomResourceDefinition in the defaults of its
// schema, a ConfigMap or Secret as data.
var skippedKinds = []string{"CustomResourceDefinition", "ConfigMap", "Secret"}

// policyGroup is Kyverno's, whose policies hold container lists with patterns ("!*:latest") in the place of references.
// https://kyverno.io/docs/policy-types/cluster-policy/validate/
const policyGroup = "kyverno.io"

// place is where the objects of some kinds hold image references, beside container lists and image volumes. All
// paths stand below each of under.
type place struct {
	group        string
	kinds        []string
	under, paths []string
}

// Knative, Argo Rollouts, the Grafana operator, KServe's ServingRuntime and others need no row: they have container
// lists. Deliberately absent: fields that name what a build pushes (Strimzi spec.build.output.image, Shipwright
// spec.output.image), half a reference (ArgoCD spec.image, baseImage of the Prometheus operator) or no reference
// (Istio ProxyConfig spec.image).
//
// places is sorted by group, then by the first kind.
var places = []place{
	// https://opensource.zalando.com/postgres-operator/docs/reference/cluster_manifest.html
	{"acid.zalan.do", []string{"postgresql"}, []string{"spec"}, []string{"connectionPooler/dockerImage", "dockerImage", "sidecars[]/image"}},
	// https://www.elastic.co/docs/reference/cloud-on-k8s/api-docs (Elastic Cloud on Kubernetes, one group per kind)
	{"agent.k8s.elastic.co", []string{"Agent"}, []string{"spec"}, []string{"image"}},
	{"apm.k8s.elastic.co", []string{"ApmServer"}, []string{"spec"}, []string{"image"}},
	// https://argo-workflows.readthedocs.io/en/latest/fields/
	{
		"argoproj.io",
		[]string{"ClusterWorkflowTemplate", "Workflow", "WorkflowTemplate"},
		[]string{"spec/templateDefaults", "spec/templates[]", "spec/templates[]/dag/tasks[]/inline", "spec/templates[]/steps[][]/inline"},
		[]string{"container/image", "script/image", "sidecars[]/image"},
	},
	{
		"argoproj.io",
		[]string{"CronWorkflow"},
		[]string{
			"spec/workflowSpec/templateDefaults", "spec/workflowSpec/templates[]",
			"spec/workflowSpec/templates[]/dag/tasks[]/inline", "spec/workflowSpec/templates[]/steps[][]/inline",
		},
		[]string{"container/image", "script/image", "sidecars[]/image"},
	},
	{"beat.k8s.elastic.co", []string{"Beat"}, []string{"spec"}, []string{"image"}},
	// https://rook.io/docs/rook/latest/CRDs/Cluster/ceph-cluster-crd/
	{"ceph.rook.io", []string{"CephCluster"}, []string{"spec/cephVersion"}, []string{"image"}},
	{"elasticsearch.k8s.elastic.co", []string{"Elasticsearch"}, []string{"spec"}, []string{"image"}},
	{"enterprisesearch.k8s.elastic.co", []string{"EnterpriseSearch"}, []string{"spec"}, []string{"image"}},
	// https://nightlies.apache.org/flink/flink-kubernetes-operator-docs-main/docs/custom-resource/reference/
	{"flink.apache.org", []string{"FlinkDeployment"}, []string{"spec"}, []string{"image"}},
	// https://github.com/jaegertracing/jaeger-operator/blob/main/docs/api.md
	{
		"jaegertracing.io",
		[]string{"Jaeger"},
		[]string{
			"spec/agent", "spec/allInOne", "spec/collector", "spec/ingester", "spec/query", "spec/storage/cassandraCreateSchema",
			"spec/storage/dependencies", "spec/storage/esIndexCleaner", "spec/storage/esRollover",
		},
		[]string{"image"},
	},
	// https://www.keycloak.org/operator/advanced-configuration
	{"k8s.keycloak.org", []string{"Keycloak"}, []string{"spec"}, []string{"image"}},
	// https://strimzi.io/docs/operators/latest/configuring.html
	{
		"kafka.strimzi.io",
		[]string{"Kafka"},
		[]string{"spec"},
		[]string{
			"cruiseControl/image", "cruiseControl/tlsSidecar/image", "entityOperator/tlsSidecar/image",
			"entityOperator/topicOperator/image", "entityOperator/userOperator/image", "jmxTrans/image",
			"kafka/brokerRackInitImage", "kafka/image", "kafkaExporter/image", "zookeeper/image",
		},
	},
	{
		"kafka.strimzi.io",
		[]string{"KafkaBridge", "KafkaConnect", "KafkaMirrorMaker", "KafkaMirrorMaker2"},
		[]string{"spec"},
		[]string{"clientRackInitImage", "image"},
	},
	{"kibana.k8s.elastic.co", []string{"Kibana"}, []string{"spec"}, []string{"image"}},
	// https://kubevirt.io/api-reference/main/definitions.html
	{
		"kubevirt.io",
		[]string{"VirtualMachine", "VirtualMachineInstanceReplicaSet"},
		[]string{"spec/template/spec"},
		[]string{"domain/firmware/kernelBoot/container/image", "volumes[]/containerDisk/image"},
	},
	{
		"kubevirt.io",
		[]string{"VirtualMachineInstance"},
		[]string{"spec"},
		[]string{"domain/firmware/kernelBoot/container/image", "volumes[]/containerDisk/image"},
	},
	{"logstash.k8s.elastic.co", []string{"Logstash"}, []string{"spec"}, []string{"image"}},
	{"maps.k8s.elastic.co", []string{"ElasticMapsServer"}, []string{"spec"}, []string{"image"}},
	// https://github.com/minio/operator/blob/master/docs/tenant_crd.adoc
	{"minio.min.io", []string{"Tenant"}, []string{"spec"}, []string{"image"}},
	// https://prometheus-operator.dev/docs/api-reference/api/
	{"monitoring.coreos.com", []string{"Alertmanager", "PrometheusAgent", "ThanosRuler"}, []string{"spec"}, []string{"image"}},
	{"monitoring.coreos.com", []string{"Prometheus"}, []string{"spec"}, []string{"image", "thanos/image"}},
	// https://operator-framework.github.io/operator-controller/api-reference/catalogd-api-reference/
	{"olm.operatorframework.io", []string{"ClusterCatalog"}, []string{"spec/source/image"}, []string{"ref"}},
	// https://github.com/open-telemetry/opentelemetry-operator/tree/main/docs/api
	{
		"opentelemetry.io",
		[]string{"Instrumentation"},
		[]string{"spec"},
		[]string{"apacheHttpd/image", "dotnet/image", "go/image", "java/image", "nginx/image", "nodejs/image", "python/image"},
	},
	{"opentelemetry.io", []string{"OpAMPBridge", "TargetAllocator"}, []string{"spec"}, []string{"image"}},
	{"opentelemetry.io", []string{"OpenTelemetryCollector"}, []string{"spec"}, []string{"image", "targetAllocator/image"}},
	// https://olm.operatorframework.io/docs/concepts/crds/
	{"operators.coreos.com", []string{"CatalogSource"}, []string{"spec"}, []string{"image"}},
	{
		"pool.kubevirt.io",
		[]string{"VirtualMachinePool"},
		[]string{"spec/virtualMachineTemplate/spec/template/spec"},
		[]string{"domain/firmware/kernelBoot/container/image", "volumes[]/containerDisk/image"},
	},
	// https://access.crunchydata.com/documentation/postgres-operator/latest/references/crd
	{
		"postgres-operator.crunchydata.com",
		[]string{"PostgresCluster"},
		[]string{"spec"},
		[]string{"backups/pgbackrest/image", "image", "monitoring/pgmonitor/exporter/image", "proxy/pgBouncer/image", "userInterface/pgAdmin/image"},
	},
	// https://cloudnative-pg.io/documentation/current/cloudnative-pg.v1/
	{"postgresql.cnpg.io", []string{"Cluster"}, []string{"spec"}, []string{"imageName", "postgresql/extensions[]/image/reference"}},
	{"postgresql.cnpg.io", []string{"ClusterImageCatalog", "ImageCatalog"}, []string{"spec/images[]"}, []string{"image"}},
	// https://www.rabbitmq.com/kubernetes/operator/using-operator
	{"rabbitmq.com", []string{"RabbitmqCluster"}, []string{"spec"}, []string{"image"}},
	// https://kserve.github.io/website/docs/reference/crd-api
	{"serving.kserve.io", []string{"ClusterStorageContainer"}, []string{"spec/container"}, []string{"image"}},
	{
		"serving.kserve.io",
		[]string{"InferenceService"},
		[]string{"spec/predictor"},
		[]string{
			"huggingface/image", "lightgbm/image", "model/image", "onnx/image", "paddle/image", "pmml/image", "pytorch/image",
			"sklearn/image", "tensorflow/image", "triton/image", "xgboost/image",
		},
	},
	// https://github.com/kubeflow/spark-operator/blob/master/docs/api-docs.md
	{
		"sparkoperator.k8s.io",
		[]string{"ScheduledSparkApplication"},
		[]string{"spec/template"},
		[]string{"driver/image", "driver/sidecars[]/image", "executor/image", "executor/sidecars[]/image", "image"},
	},
	{
		"sparkoperator.k8s.io",
		[]string{"SparkApplication"},
		[]string{"spec"},
		[]string{"driver/image", "driver/sidecars[]/image", "executor/image", "executor/sidecars[]/image", "image"},
	},
	// https://tekton.dev/docs/pipelines/pipeline-api/
	{
		"tekton.dev",
		[]string{"ClusterTask", "Task"},
		[]string{"spec"},
		[]string{"sidecars[]/image", "stepTemplate/image", "steps[]/image"},
	},
	{
		"tekton.dev",
		[]string{"Pipeline"},
		[]string{"spec/finally[]/taskSpec", "spec/tasks[]/taskSpec"},
		[]string{"sidecars[]/image", "stepTemplate/image", "steps[]/image"},
	},
	{
		"tekton.dev",
		[]string{"PipelineRun"},
		[]string{"spec/pipelineSpec/finally[]/taskSpec", "spec/pipelineSpec/tasks[]/taskSpec"},
		[]string{"sidecars[]/image", "stepTemplate/image", "steps[]/image"},
	},
	{"tekton.dev", []string{"StepAction"}, []string{"spec"}, []string{"image"}},
	{
		"tekton.dev",
		[]string{"TaskRun"},
		[]string{"spec/taskSpec"},
		[]string{"sidecars[]/image", "stepTemplate/image", "steps[]/image"},
	},
}

// Field is one more place: a kustomize field specification. Path is "spec/foo/containers[]/image"; its segments
// descend into every item of a list, with or without the brackets, and "\/" is a slash in a key. An empty Group,
// Version or Kind matches any.
type Field struct{ Group, Version, Kind, Path string }

// matches reports whether f speaks about objects of this group, version and kind.
func (f Field) matches(group, version, kind string) bool {
	return (f.Group == "" || f.Group == group) && (f.Version == "" || f.Version == version) && (f.Kind == "" || f.Kind == kind)
}

// segments returns the keys of a path.
func segments(path string) []string {
	const escaped = "\x00" // cannot stand in YAML
	keys := strings.Split(strings.ReplaceAll(path, `\/`, escaped), "/")
	for i, k := range keys {
		for strings.HasSuffix(k, "[]") {
			k = strings.TrimSuffix(k, "[]")
		}
		keys[i] = strings.ReplaceAll(k, escaped, "/")
	}
	return keys
}

// nodes is a set of scalars; nil is empty.
type nodes map[*yaml.Node]bool

// collect adds the scalars that stand under keys in n.
func (s nodes) collect(n *yaml.Node, keys []string) {
	switch {
	case n.Kind == yaml.SequenceNode:
		for _, item := range n.Content {
			s.collect(item, keys)
		}
	case len(keys) == 0 && n.Kind == yaml.ScalarNode:
		s[n] = true
	case len(keys) > 0:
		if v := value(n, keys[0]); v != nil {
			s.collect(v, keys[1:])
		}
	}
}

// collected returns the scalars of object that a row of places or one of fields names, nil for most objects.
func collected(object *yaml.Node, fields []Field) nodes {
	group, version, kind := typeOf(object)
	var found nodes
	add := func(path string) {
		if found == nil {
			found = nodes{}
		}
		found.collect(object, segments(path))
	}
	for i := range places {
		if p := &places[i]; p.group == group && slices.Contains(p.kinds, kind) {
			for _, under := range p.under {
				for _, path := range p.paths {
					add(under + "/" + path)
				}
			}
		}
	}
	for _, f := range fields {
		if f.matches(group, version, kind) {
			add(f.Path)
		}
	}
	return found
}

// typeOf returns what the object says it is; the group of "v1" is "".
func typeOf(object *yaml.Node) (group, version, kind string) {
	group, version, found := strings.Cut(scalar(object, "apiVersion"), "/")
	if !found {
		group, version = "", group
	}
	return group, version, scalar(object, "kind")
}
