//! The form of a file that was given as a certificate or a key, but has none in PEM: each form has its remedy.

use super::is_der;
use crate::tls::pem::{find, is_encrypted, private_key};
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// The form of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Empty,
    /// A certificate request (RFC 7468, section 7).
    Request,
    PublicKey,
    /// A private key in PEM, which may be encrypted.
    PrivateKey,
    /// PKCS #7, in PEM or in DER.
    Pkcs7(Coding),
    /// PKCS #12, which is never in PEM.
    Pkcs12,
    JavaKeystore,
    /// The private key of OpenSSH.
    OpenSshKey,
    /// A certificate in DER.
    CertificateInDer,
    /// Another value in DER, such as a key.
    OtherDer,
    /// A block in PEM whose content is damaged.
    Damaged,
    Other,
}

/// The coding of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Pem,
    Der,
}

/// Object identifiers of PKCS #7 (RFC 2315, section 14) in DER.
const PKCS7_SIGNED: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2];
const PKCS7_DATA: &[u8] = &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1];
/// First bytes of a keystore of Java.
const JAVA: &[u8] = &[0xfe, 0xed, 0xfe, 0xed];
/// Number of bytes in which the type of a value in DER is found.
const DER_BEGINNING: usize = 64;

impl Form {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let has = |label: &str| find(bytes, format!("-----BEGIN {label}-----").as_bytes()).is_some();
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Self::Empty;
        }
        if bytes.starts_with(JAVA) {
            return Self::JavaKeystore;
        }
        if has("CERTIFICATE REQUEST") || has("NEW CERTIFICATE REQUEST") {
            return Self::Request;
        }
        if has("PKCS7") || has("CMS") {
            return Self::Pkcs7(Coding::Pem);
        }
        if has("PUBLIC KEY") || has("RSA PUBLIC KEY") {
            return Self::PublicKey;
        }
        if has("OPENSSH PRIVATE KEY") {
            return Self::OpenSshKey;
        }
        if is_encrypted(bytes) || private_key(bytes).is_ok() {
            return Self::PrivateKey;
        }
        if find(bytes, b"-----BEGIN ").is_some() {
            let is_key = find(bytes, b"PRIVATE KEY-----").is_some();
            return if is_key || has("CERTIFICATE") { Self::Damaged } else { Self::Other };
        }
        if !is_der(bytes) {
            return Self::Other;
        }
        let beginning = &bytes[..bytes.len().min(DER_BEGINNING)];
        match () {
            () if find(beginning, PKCS7_SIGNED).is_some() => Self::Pkcs7(Coding::Der),
            // A PKCS #12 file begins with its version, 3, and contains PKCS #7 (RFC 7292, section 4).
            () if find(beginning, &[2, 1, 3]).is_some() && find(beginning, PKCS7_DATA).is_some() => {
                Self::Pkcs12
            }
            () if Certificate::from_der(bytes).is_ok() => Self::CertificateInDer,
            () => Self::OtherDer,
        }
    }

    /// Returns the message about a file of this form that was given for something else, which is `wanted`.
    pub(super) fn message(self, file: &str, wanted: &str) -> String {
        match self {
            Self::Empty => format!("{file} is empty: write the {wanted} to it, in PEM"),
            Self::Request => {
                format!(
                    "{file} is a certificate request (CSR), not a {wanted}: use the certificate that the authority returned for it"
                )
            }
            Self::PublicKey => format!("{file} is a public key, not a {wanted}"),
            Self::PrivateKey => format!("{file} is a private key, not a {wanted}"),
            Self::Pkcs7(Coding::Pem) => {
                format!(
                    "{file} is PKCS #7, not PEM: convert it: openssl pkcs7 -print_certs -in {file} -out NEW.pem"
                )
            }
            Self::Pkcs7(Coding::Der) => {
                format!(
                    "{file} is PKCS #7, not PEM: convert it: openssl pkcs7 -inform der -print_certs -in {file} -out NEW.pem"
                )
            }
            Self::Pkcs12 => format!(
                "{file} is PKCS #12 (.p12, .pfx), not PEM: convert it: openssl pkcs12 -nodes -in {file} -out NEW.pem"
            ),
            Self::JavaKeystore => format!(
                "{file} is a keystore of Java, not PEM: export it with keytool -importkeystore -deststoretype PKCS12, then convert it: openssl pkcs12 -nodes -in NEW.p12 -out NEW.pem"
            ),
            Self::OpenSshKey => format!(
                "{file} is a key of OpenSSH, not PEM for TLS: convert a copy of it: ssh-keygen -p -m PKCS8 -f COPY"
            ),
            Self::CertificateInDer => {
                format!(
                    "{file} is a certificate in DER, not PEM: convert it: openssl x509 -inform der -in {file} -out NEW.pem"
                )
            }
            Self::OtherDer if wanted == "private key" => {
                format!(
                    "{file} is in DER, not PEM: convert it: openssl pkey -inform der -in {file} -out NEW.key"
                )
            }
            Self::OtherDer => format!("{file} is in DER, and not a {wanted}: give a file in PEM"),
            Self::Damaged => format!("{file} is damaged or cut off: copy the file again"),
            Self::Other => format!(
                "{file} has no {wanted} in PEM, which begins with -----BEGIN {}-----",
                wanted.to_uppercase()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_of_a_file_is_recognized() {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let pem =
            |label: &str| format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n").into_bytes();
        let check = |bytes: &[u8], form: Form| assert_eq!(Form::of(bytes), form);
        check(b"", Form::Empty);
        check(b" \r\n", Form::Empty);
        check(&pem("CERTIFICATE REQUEST"), Form::Request);
        check(&pem("NEW CERTIFICATE REQUEST"), Form::Request);
        check(&pem("PUBLIC KEY"), Form::PublicKey);
        check(&pem("PKCS7"), Form::Pkcs7(Coding::Pem));
        check(&pem("OPENSSH PRIVATE KEY"), Form::OpenSshKey);
        check(&pem("PRIVATE KEY"), Form::PrivateKey);
        check(made.signing_key.serialize_pem().as_bytes(), Form::PrivateKey);
        check(&pem("ENCRYPTED PRIVATE KEY"), Form::PrivateKey);
        check(b"-----BEGIN PRIVATE KEY-----\nMAA", Form::Damaged);
        check(b"-----BEGIN CERTIFICATE-----\nMAA", Form::Damaged);
        check(&pem("DH PARAMETERS"), Form::Other);
        check(made.cert.der(), Form::CertificateInDer);
        check(&made.signing_key.serialize_der(), Form::OtherDer);
        check(&[&[0x30, 14, 2, 1, 3, 0x30], PKCS7_DATA].concat()[..], Form::Other);
        check(&[&[0x30, 16, 2, 1, 3, 0x30, 11], PKCS7_DATA].concat()[..], Form::Pkcs12);
        check(&[&[0x30, 11], PKCS7_SIGNED].concat()[..], Form::Pkcs7(Coding::Der));
        check(&[0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2], Form::JavaKeystore);
        check(b"hello", Form::Other);
    }
}
