//! The objects of a synthetic cluster as an API server sends them, with all that a real one has
//! besides what policies depend on: reading past it is part of an agent's work. Pods are written
//! straight into the text, since there are many. Must never leave out what the agent needs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    Cluster, Controller, Happened, Namespace, Pod, Policy, Workload, node_address, node_name,
};

/// When everything was created.
const CREATED: &str = "2026-01-02T03:04:05Z";

/// A line of a watch.
pub fn event(what: Happened, object: &str) -> String {
    let kind = match what {
        Happened::Added => "ADDED",
        Happened::Changed => "MODIFIED",
        Happened::Deleted => "DELETED",
    };
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

impl Workload {
    fn owner(&self) -> (&'static str, String) {
        match self.controller {
            Controller::Deployment => ("ReplicaSet", format!("{}-{}", self.app, self.hash)),
            Controller::StatefulSet => ("StatefulSet", self.app.clone()),
            Controller::Job => ("Job", self.app.clone()),
            Controller::HostDaemon => ("DaemonSet", self.app.clone()),
        }
    }
}

impl Pod {
    /// Its name in its namespace.
    pub fn name(&self, workload: &Workload) -> String {
        let Workload { app, hash, controller, .. } = workload;
        match controller {
            Controller::Deployment => format!("{app}-{hash}-{:06x}", self.serial),
            // A later one of the same name would be the same object.
            Controller::StatefulSet if self.serial < 1 << 24 => format!("{app}-{}", self.ordinal),
            _ => format!("{app}-{:06x}", self.serial),
        }
    }

    /// Its uid.
    pub fn uid(&self) -> String {
        // Spread over all digits, as random ones are.
        let mut rng = fastrand::Rng::with_seed(u64::from(self.serial) + 1);
        let mut part = |digits: u32| rng.u64(..1 << (4 * digits));
        let [a, b, c, d, e] = [part(8), part(4), part(3), part(3), part(12)];
        format!("{a:08x}-{b:04x}-4{c:03x}-8{d:03x}-{e:012x}")
    }
}

impl Cluster {
    /// A pod, of that resourceVersion.
    pub fn pod_json(&self, pod: &Pod, version: u64, out: &mut String) {
        let workload = self.workload_of(pod);
        let (owner_kind, owner) = workload.owner();
        let name = pod.name(workload);
        let (app, port) = (&workload.app, workload.port);
        // Every second relabelling takes it out of what policies select by this label.
        let tier = if pod.version % 2 == 1 { workload.tier } else { "retired" };
        let hash = match workload.controller {
            Controller::Deployment => ("pod-template-hash", workload.hash.clone()),
            Controller::StatefulSet => ("statefulset.kubernetes.io/pod-name", name.clone()),
            Controller::Job => ("batch.kubernetes.io/job-name", app.clone()),
            Controller::HostDaemon => ("controller-revision-hash", workload.hash.clone()),
        };
        let host = workload.controller == Controller::HostDaemon;
        let phase = if pod.has_ended { "Succeeded" } else { "Running" };
        let ready = if pod.is_ready && !pod.has_ended { "True" } else { "False" };
        let result = write!(
            out,
            r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","generateName":"{owner}-","namespace":"{namespace}","uid":"{uid}","resourceVersion":"{version}","creationTimestamp":"{CREATED}","labels":{{"app":"{app}","app.kubernetes.io/managed-by":"Helm","{hash_key}":"{hash}","tier":"{tier}","version":"v{label}"}},"annotations":{{"checksum/config":"8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4","kubectl.kubernetes.io/restartedAt":"{CREATED}","prometheus.io/port":"9090","prometheus.io/scrape":"true"}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"{owner_kind}","name":"{owner}","uid":"0b36ea19-7e58-4ab5-9a36-c7ba11bb0a0c","controller":true,"blockOwnerDeletion":true}}],"managedFields":{MANAGED_POD}}},"spec":{{"volumes":{VOLUMES},"containers":[{{"name":"{app}","image":"registry.example/{app}:1.27.{label}@sha256:4c0fdaa8b6341bfdeca5f18f7837462c80cff90527ee35ef185571e1c327beac","ports":[{{"name":"http","containerPort":{port},"protocol":"TCP"}},{{"name":"metrics","containerPort":9090,"protocol":"TCP"}}],{CONTAINER}}}],"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"{app}","serviceAccount":"{app}","nodeName":"{node}","hostNetwork":{host},{SPEC}}},"status":{{"phase":"{phase}","conditions":[{{"type":"PodReadyToStartContainers","status":"True","lastProbeTime":null,"lastTransitionTime":"{CREATED}"}},{{"type":"Initialized","status":"True","lastProbeTime":null,"lastTransitionTime":"{CREATED}"}},{{"type":"Ready","status":"{ready}","lastProbeTime":null,"lastTransitionTime":"{CREATED}"}},{{"type":"ContainersReady","status":"{ready}","lastProbeTime":null,"lastTransitionTime":"{CREATED}"}},{{"type":"PodScheduled","status":"True","lastProbeTime":null,"lastTransitionTime":"{CREATED}"}}],"hostIP":"{host_ip}","hostIPs":[{{"ip":"{host_ip}"}}],"podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}],"startTime":"{CREATED}","containerStatuses":[{{"name":"{app}","state":{{"running":{{"startedAt":"{CREATED}"}}}},"lastState":{{}},"ready":{is_ready},"restartCount":0,"image":"registry.example/{app}:1.27.{label}","imageID":"registry.example/{app}@sha256:4c0fdaa8b6341bfdeca5f18f7837462c80cff90527ee35ef185571e1c327beac","containerID":"containerd://7d1fd0a7b3a0a3b6a3e0a1f9d0e1c4b1f0c3e9f2d9b0a8e7c6d5f4e3d2c1b0a9","started":true}}],"qosClass":"Burstable"}}}}"#,
            namespace = self.namespace_of(workload),
            uid = pod.uid(),
            hash_key = hash.0,
            hash = hash.1,
            label = pod.version,
            node = node_name(pod.node),
            host_ip = node_address(pod.node),
            ip = pod.address,
            is_ready = ready == "True",
        );
        result.expect("invariant: writing to a string does not fail");
    }
}

impl Namespace {
    /// The namespace, of that resourceVersion.
    pub fn json(&self, version: u64) -> Value {
        let mut labels: serde_json::Map<String, Value> = self
            .labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_str().into()))
            .collect();
        labels.insert("kubernetes.io/metadata.name".into(), self.name.as_str().into());
        json!({
            "kind": "Namespace", "apiVersion": "v1",
            "metadata": {"name": self.name, "uid": format!("ns-{}", self.name),
                "resourceVersion": version.to_string(), "creationTimestamp": CREATED,
                "labels": labels},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        })
    }
}

impl Policy {
    /// The policy, of that resourceVersion.
    pub fn json(&self, namespace: &str, version: u64) -> Value {
        json!({
            "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
            "metadata": {"name": self.name, "namespace": namespace,
                "uid": format!("policy-{}", self.name), "resourceVersion": version.to_string(),
                "generation": 1, "creationTimestamp": CREATED,
                "annotations": {"meta.helm.sh/release-name": "policies",
                    "meta.helm.sh/release-namespace": namespace},
                "labels": {"app.kubernetes.io/managed-by": "Helm"}},
            "spec": self.spec,
        })
    }
}

/// The Service of a workload, if it has one.
pub fn service_json(cluster: &Cluster, workload: &Workload, version: u64) -> Option<Value> {
    let address = workload.service?.to_string();
    Some(json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": workload.app, "namespace": cluster.namespace_of(workload),
            "uid": format!("service-{}", workload.app), "resourceVersion": version.to_string(),
            "creationTimestamp": CREATED, "labels": {"app": workload.app}},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app": workload.app},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}]},
        "status": {"loadBalancer": {}},
    }))
}

/// The EndpointSlice of a workload that has a Service: its pods that have not ended.
pub fn slice_json(
    cluster: &Cluster,
    workload: &Workload,
    pods: &[Pod],
    version: u64,
) -> Option<Value> {
    workload.service?;
    let endpoints: Vec<Value> = pods
        .iter()
        .filter(|pod| !pod.has_ended)
        .map(|pod| {
            json!({
                "addresses": [pod.address.to_string()],
                "conditions": {"ready": pod.is_ready, "serving": pod.is_ready,
                    "terminating": false},
                "nodeName": node_name(pod.node),
                "targetRef": {"kind": "Pod", "namespace": cluster.namespace_of(workload),
                    "name": pod.name(workload), "uid": pod.uid()},
            })
        })
        .collect();
    Some(json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": format!("{}-slice", workload.app),
            "namespace": cluster.namespace_of(workload),
            "uid": format!("slice-{}", workload.app), "resourceVersion": version.to_string(),
            "creationTimestamp": CREATED,
            "labels": {"kubernetes.io/service-name": workload.app,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": workload.port}],
    }))
}

/// The node with that index.
pub fn node_json(index: u32, version: u64) -> Value {
    let images: Vec<Value> = (0..20)
        .map(|image| {
            let name = format!("registry.example/library/image-{image}:v1.{index}");
            json!({"names": [name], "sizeBytes": 34_000_000 + image})
        })
        .collect();
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {"name": node_name(index), "uid": format!("node-{index}"),
            "resourceVersion": version.to_string(), "creationTimestamp": CREATED,
            "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": node_name(index),
                "topology.kubernetes.io/zone": format!("zone-{}", index % 3)}},
        "spec": {"podCIDR": format!("10.{}.{}.0/24", index >> 8, index & 255)},
        "status": {
            "addresses": [{"type": "InternalIP", "address": node_address(index).to_string()},
                {"type": "Hostname", "address": node_name(index)}],
            "capacity": {"cpu": "16", "memory": "65843508Ki", "pods": "110"},
            "images": images,
        },
    })
}

/// What two managers say that they own of a pod, about as long as in real clusters.
const MANAGED_POD: &str = r#"[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"v1","time":"2026-01-02T03:04:05Z","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:checksum/config":{},"f:kubectl.kubernetes.io/restartedAt":{},"f:prometheus.io/port":{},"f:prometheus.io/scrape":{}},"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:app.kubernetes.io/managed-by":{},"f:pod-template-hash":{},"f:tier":{},"f:version":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"0b36ea19-7e58-4ab5-9a36-c7ba11bb0a0c\"}":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"app\"}":{".":{},"f:env":{".":{},"k:{\"name\":\"POD_NAME\"}":{".":{},"f:name":{},"f:valueFrom":{".":{},"f:fieldRef":{}}}},"f:image":{},"f:imagePullPolicy":{},"f:livenessProbe":{".":{},"f:failureThreshold":{},"f:httpGet":{".":{},"f:path":{},"f:port":{},"f:scheme":{}},"f:periodSeconds":{},"f:successThreshold":{},"f:timeoutSeconds":{}},"f:name":{},"f:ports":{".":{},"k:{\"containerPort\":8080,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{},"f:name":{},"f:protocol":{}}},"f:resources":{".":{},"f:limits":{".":{},"f:memory":{}},"f:requests":{".":{},"f:cpu":{},"f:memory":{}}},"f:terminationMessagePath":{},"f:terminationMessagePolicy":{}}},"f:dnsPolicy":{},"f:enableServiceLinks":{},"f:restartPolicy":{},"f:schedulerName":{},"f:securityContext":{},"f:serviceAccount":{},"f:serviceAccountName":{},"f:terminationGracePeriodSeconds":{}}}},{"manager":"kubelet","operation":"Update","apiVersion":"v1","time":"2026-01-02T03:04:15Z","fieldsType":"FieldsV1","fieldsV1":{"f:status":{"f:conditions":{"k:{\"type\":\"ContainersReady\"}":{".":{},"f:lastProbeTime":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Initialized\"}":{".":{},"f:lastProbeTime":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Ready\"}":{".":{},"f:lastProbeTime":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}}},"f:containerStatuses":{},"f:hostIP":{},"f:hostIPs":{},"f:phase":{},"f:podIP":{},"f:podIPs":{".":{},"k:{\"ip\":\"10.0.0.1\"}":{".":{},"f:ip":{}}},"f:startTime":{}}},"subresource":"status"}]"#;

const VOLUMES: &str = r#"[{"name":"kube-api-access-x7k2p","projected":{"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"}}]}}],"defaultMode":420}}]"#;

const CONTAINER: &str = r#""env":[{"name":"POD_NAME","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"metadata.name"}}},{"name":"LOG_LEVEL","value":"info"},{"name":"DATABASE_URL","valueFrom":{"secretKeyRef":{"name":"database","key":"url"}}}],"resources":{"limits":{"memory":"256Mi"},"requests":{"cpu":"100m","memory":"128Mi"}},"volumeMounts":[{"name":"kube-api-access-x7k2p","readOnly":true,"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"}],"livenessProbe":{"httpGet":{"path":"/healthz","port":"http","scheme":"HTTP"},"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","imagePullPolicy":"IfNotPresent""#;

const SPEC: &str = r#""securityContext":{},"schedulerName":"default-scheduler","tolerations":[{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300},{"key":"node.kubernetes.io/unreachable","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}],"priority":0,"enableServiceLinks":true,"preemptionPolicy":"PreemptLowerPriority""#;
