//! Parts of TLS that need no configuration: PEM files, trusted authorities, and a verifier that accepts any certificate.

mod insecure;
pub(crate) mod pem;
mod trust;

pub(crate) use insecure::insecure_verifier;
pub(crate) use trust::Authorities;
