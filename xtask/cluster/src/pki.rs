//! The cluster's certificates and kubeconfigs. Must never sign anything but for the cluster that
//! it was made for: each has an authority of its own, whose key stays in its state directory.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// A certificate authority, kept in a directory.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Opens the authority in `directory`, or founds it.
    ///
    /// # Errors
    /// The directory cannot be read or written, or holds something else.
    pub fn ensure(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let directory = directory.to_owned();
        let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
        let mut params = parameters("netpol-cluster-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let pair = if certificate.exists() {
            KeyPair::from_pem(&read(&key)?).with_context(|| format!("read {}", key.display()))?
        } else {
            let pair = KeyPair::generate()?;
            write_secret(&key, &pair.serialize_pem())?;
            fs::write(&certificate, params.self_signed(&pair)?.pem())?;
            pair
        };
        Ok(Self { directory, issuer: Issuer::new(params, pair) })
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.file("ca.key")
    }

    /// A file in its directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes `NAME.crt` and `NAME.key` for a server that is reached by these names and addresses,
    /// unless they exist.
    ///
    /// # Errors
    /// They cannot be made or written.
    pub fn server(&self, name: &str, names: &[&str], addresses: &[IpAddr]) -> Result<()> {
        let mut params = parameters(name, None);
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(name, &params)
    }

    /// Makes `NAME.crt` and `NAME.key` for a client that is this user in this group, unless they
    /// exist.
    ///
    /// # Errors
    /// They cannot be made or written.
    pub fn client(&self, name: &str, user: &str, group: Option<&str>) -> Result<()> {
        let mut params = parameters(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, &params)
    }

    /// Makes `NAME.kubeconfig` for such a client; it holds everything and refers to no file.
    ///
    /// # Errors
    /// It cannot be made or written.
    pub fn kubeconfig(
        &self,
        name: &str,
        user: &str,
        group: Option<&str>,
        server: &str,
    ) -> Result<()> {
        self.client(name, user, group)?;
        let text = self.kubeconfig_text(name, server)?;
        write_secret(&self.file(&format!("{name}.kubeconfig")), &text)
    }

    /// A kubeconfig for the client whose certificate is `NAME.crt`, by which the API server is
    /// at `server`.
    ///
    /// # Errors
    /// There is no such client.
    pub fn kubeconfig_text(&self, name: &str, server: &str) -> Result<String> {
        let data =
            |file: &str| -> Result<String> { Ok(BASE64_STANDARD.encode(read(&self.file(file))?)) };
        let text = serde_json::to_string_pretty(&serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "netpol", "cluster": {
                "server": server,
                "certificate-authority-data": data("ca.crt")?,
            }}],
            "users": [{ "name": name, "user": {
                "client-certificate-data": data(&format!("{name}.crt"))?,
                "client-key-data": data(&format!("{name}.key"))?,
            }}],
            "contexts": [{ "name": "netpol", "context": { "cluster": "netpol", "user": name }}],
            "current-context": "netpol",
        }))?;
        Ok(text)
    }

    /// Makes a key pair alone, `NAME.key` and `NAME.pub`, unless it exists.
    ///
    /// # Errors
    /// It cannot be made or written.
    pub fn key_pair(&self, name: &str) -> Result<()> {
        let public = self.file(&format!("{name}.pub"));
        if public.exists() {
            return Ok(());
        }
        let pair = KeyPair::generate()?;
        write_secret(&self.file(&format!("{name}.key")), &pair.serialize_pem())?;
        fs::write(&public, pair.public_key_pem())
            .with_context(|| format!("write {}", public.display()))
    }

    fn issue(&self, name: &str, params: &CertificateParams) -> Result<()> {
        let certificate = self.file(&format!("{name}.crt"));
        if certificate.exists() {
            return Ok(());
        }
        let pair = KeyPair::generate()?;
        let signed = params.signed_by(&pair, &self.issuer)?;
        write_secret(&self.file(&format!("{name}.key")), &pair.serialize_pem())?;
        fs::write(&certificate, signed.pem())
            .with_context(|| format!("write {}", certificate.display()))
    }
}

fn parameters(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Writes a file that nobody else may read.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}
