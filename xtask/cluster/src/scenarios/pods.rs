//! Manifests of the scenarios' pods and policies, as text.

use std::fmt::Write as _;

/// The image of the program `traffic`.
pub const TRAFFIC_IMAGE: &str = "localhost/netpol-traffic:1";
/// The port at which every traffic pod echoes.
pub const PORT: u16 = 8080;
/// The port at which every traffic pod answers probes.
pub const HEALTH_PORT: u16 = 8081;

/// Denies everything to and from every pod of the namespace, but that spies may send: whether they
/// arrive is for those to say whom they send to.
pub const DENY_ALL: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny-all}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: spies-send}
spec: {podSelector: {matchLabels: {app: spy}}, policyTypes: [Egress], egress: [{}]}
";

/// Lets every pod of the namespace ask the cluster's DNS.
pub const ALLOW_DNS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-dns}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to:
        - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
          podSelector: {matchLabels: {k8s-app: kube-dns}}
      ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
";

/// A pod that runs `traffic`.
#[derive(Debug, Clone)]
pub struct Pod {
    app: String,
    node: Option<String>,
    arguments: Vec<String>,
    fields: String,
    container: String,
}

impl Pod {
    /// A pod with the label `app`.
    #[must_use]
    pub fn new(app: &str) -> Self {
        Self {
            app: app.to_owned(),
            node: None,
            arguments: Vec::new(),
            fields: String::new(),
            container: String::new(),
        }
    }

    /// Echoes at [`PORT`].
    #[must_use]
    pub fn serve(self) -> Self {
        self.argument(&format!("--serve={PORT}"))
    }

    /// Runs on this node.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// Sends; see `traffic --help`.
    #[must_use]
    pub fn flow(self, name: &str, kind: &str, to: &str, rate: f64) -> Self {
        self.argument(&format!("--flow=name={name},kind={kind},to={to},rate={rate}"))
    }

    /// Sends so many messages, and gives up on each after so many milliseconds.
    #[must_use]
    pub fn burst(
        self,
        name: &str,
        kind: &str,
        to: &str,
        rate: f64,
        count: u32,
        timeout: u32,
    ) -> Self {
        self.argument(&format!(
            "--flow=name={name},kind={kind},to={to},rate={rate},count={count},timeout={timeout}"
        ))
    }

    /// One more argument of `traffic`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// One more field of the pod's specification, one line of YAML.
    #[must_use]
    pub fn field(mut self, line: &str) -> Self {
        let _ = writeln!(self.fields, "  {line}");
        self
    }

    /// One more field of its container.
    #[must_use]
    pub fn container(mut self, line: &str) -> Self {
        let _ = writeln!(self.container, "      {line}");
        self
    }

    /// Ready when it answers.
    #[must_use]
    pub fn probed(self) -> Self {
        self.container(&format!(
            "readinessProbe: {{httpGet: {{path: /healthz, port: {HEALTH_PORT}}}, periodSeconds: 1, \
             timeoutSeconds: 10, failureThreshold: 3}}"
        ))
    }

    fn spec(&self) -> String {
        let arguments: Vec<String> =
            self.arguments.iter().map(|argument| format!("{argument:?}")).collect();
        let mut text = String::from("spec:\n  terminationGracePeriodSeconds: 20\n");
        text += "  automountServiceAccountToken: false\n  enableServiceLinks: false\n";
        if let Some(node) = &self.node {
            let _ = writeln!(text, "  nodeName: {node}");
        }
        text += &self.fields;
        let _ = write!(
            text,
            "  containers:\n    - name: traffic\n      image: {TRAFFIC_IMAGE}\n      \
             imagePullPolicy: IfNotPresent\n      args: [{}]\n{}",
            arguments.join(", "),
            self.container
        );
        text
    }

    /// A bare pod.
    #[must_use]
    pub fn pod(&self, name: &str) -> String {
        format!(
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {}}}}}\n{}",
            self.app,
            self.spec()
        )
    }

    fn template(&self) -> String {
        let spec = self.spec().replace('\n', "\n    ");
        format!("  template:\n    metadata: {{labels: {{app: {}}}}}\n    {spec}", self.app)
    }

    /// A Deployment of them that is replaced without falling below `replicas`.
    #[must_use]
    pub fn deployment(&self, name: &str, replicas: u32) -> String {
        format!(
            "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  \
             replicas: {replicas}\n  strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}\n  \
             selector: {{matchLabels: {{app: {}}}}}\n{}",
            self.app,
            self.template()
        )
    }

    /// A StatefulSet of them behind the headless Service `name`.
    #[must_use]
    pub fn stateful_set(&self, name: &str, replicas: u32) -> String {
        format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
             clusterIP: None\n  selector: {{app: {0}}}\n  ports: [{{port: {PORT}}}]\
             \n---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: {name}}}\nspec:\n  \
             replicas: {replicas}\n  serviceName: {name}\n  podManagementPolicy: Parallel\n  \
             selector: {{matchLabels: {{app: {0}}}}}\n{1}",
            self.app,
            self.template()
        )
    }

    /// A Job of them that runs each of them once, whatever comes of it.
    #[must_use]
    pub fn job(&self, name: &str, completions: u32, parallelism: u32) -> String {
        let spec = self.clone().field("restartPolicy: Never");
        format!(
            "\n---\napiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n  \
             completions: {completions}\n  parallelism: {parallelism}\n  backoffLimit: 0\n{}",
            spec.template()
        )
    }
}

/// A Service in front of the pods with the label `app`, over TCP and UDP.
#[must_use]
pub fn service(name: &str, app: &str, more: &str) -> String {
    format!(
        "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
         selector: {{app: {app}}}\n  {more}\n  ports:\n    \
         - {{name: tcp, protocol: TCP, port: {PORT}}}\n    \
         - {{name: udp, protocol: UDP, port: {PORT}}}\n"
    )
}

/// Lets pods with the label `from` reach [`PORT`] of those with the label `to`, at both ends.
#[must_use]
pub fn allow(from: &str, to: &str) -> String {
    let ports =
        format!("ports: [{{protocol: TCP, port: {PORT}}}, {{protocol: UDP, port: {PORT}}}]");
    format!(
        "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {to}-from-{from}}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: {to}}}}}\n  policyTypes: [Ingress]\n  ingress:\n    \
         - from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}]\n      {ports}\
         \n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {from}-to-{to}}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: {from}}}}}\n  policyTypes: [Egress]\n  egress:\n    \
         - to: [{{podSelector: {{matchLabels: {{app: {to}}}}}}}]\n      {ports}\n"
    )
}
