//! The connection to an API server: who we say we are, and how long silence may last. kube's own
//! client waits for ever for an answer, and five minutes for a watch whose server has vanished
//! without a word. Must never change what is asked.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyper::header::{HeaderValue, USER_AGENT};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// Audit logs and API priority rules know the agent by this.
const AGENT: &str = concat!("netpol/", env!("CARGO_PKG_VERSION"));
/// A TCP and TLS handshake.
const CONNECT: Duration = Duration::from_secs(10);
/// A server that is alive says something on a watch every minute (a bookmark), and answers lists
/// within a minute.
const SILENCE: Duration = Duration::from_secs(100);
/// A host that does not acknowledge any more has gone: after 15 s of silence it is asked every
/// 5 s, three times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);
/// The same for what is sent and not acknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A client for the API server that `config` describes.
///
/// # Errors
/// The configuration cannot be used: bad certificates or credentials, or a proxy.
pub fn connect(config: Config) -> Result<Client> {
    connect_with(config, SILENCE)
}

/// As [`connect`], with another time that silence may last.
///
/// # Errors
/// As [`connect`].
pub fn connect_with(mut config: Config, silence: Duration) -> Result<Client> {
    ensure!(
        config.proxy_url.is_none(),
        "a proxy is configured for the API server, and netpol can only reach it directly: unset \
         proxy-url in the kubeconfig, or HTTPS_PROXY"
    );
    config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_keepalive(Some(KEEPALIVE.0));
    http.set_keepalive_interval(Some(KEEPALIVE.1));
    http.set_keepalive_retries(Some(KEEPALIVE.2));
    http.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let https = config
        .rustls_https_connector_with_connector(http)
        .context("use the certificates of the API server's configuration")?;
    let mut connector = TimeoutConnector::new(https);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(silence));
    // Silence counts from the last request, not from when a connection became free.
    connector.set_reset_reader_on_write(true);
    let http = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let auth =
        config.auth_layer().context("use the credentials of the API server's configuration")?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth)
        .layer(config.extra_headers_layer().context("use the headers of the configuration")?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
