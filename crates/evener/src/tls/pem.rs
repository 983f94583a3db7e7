//! Tolerant PEM parser: accepts a byte order mark and the labels `X509` and `TRUSTED`. Also describes keys
//! that are not supported.

use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::borrow::Cow;
use x509_cert::der::asn1::{ContextSpecific, ObjectIdentifier, OctetStringRef, UintRef};
use x509_cert::der::{Decode, Header, Reader, SliceReader};
use x509_cert::spki::AlgorithmIdentifierRef;

/// Byte order mark of UTF-8, which some editors add.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Other labels of certificates (openssl(1), "PEM headers"), each with the standard label.
const LABELS: [(&[u8], &[u8]); 2] =
    [(b" X509 CERTIFICATE-----", b" CERTIFICATE-----"), (b" TRUSTED CERTIFICATE-----", b" CERTIFICATE-----")];

/// Returns the certificates in a file.
pub(crate) fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = normalized(bytes);
    let is_renamed = matches!(text, Cow::Owned(_));
    let all = CertificateDer::pem_slice_iter(&text);
    all.map(|certificate| certificate.map(|der| if is_renamed { without_trust(der) } else { der })).collect()
}

/// Returns the first private key in a file.
pub(crate) fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(&normalized(bytes))
}

/// Returns true if a file has an encrypted key (RFC 1421, section 4.6.1.1; RFC 7468, section 11).
pub(crate) fn is_encrypted(bytes: &[u8]) -> bool {
    find(bytes, b"-----BEGIN ENCRYPTED PRIVATE KEY-----").is_some()
        || find(bytes, b"Proc-Type: 4,ENCRYPTED").is_some()
}

/// Returns the text with standard labels and without byte order marks.
fn normalized(bytes: &[u8]) -> Cow<'_, [u8]> {
    let replace = |text: Cow<'_, [u8]>, from: &[u8], to: &[u8]| -> Option<Vec<u8>> {
        let first = find(&text, from)?;
        let (mut out, mut rest) = (text[..first].to_vec(), &text[first..]);
        while let Some(at) = find(rest, from) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(to);
            rest = &rest[at + from.len()..];
        }
        out.extend_from_slice(rest);
        Some(out)
    };
    let mut text = Cow::Borrowed(bytes);
    for (from, to) in LABELS.into_iter().chain([(BYTE_ORDER_MARK, &b""[..])]) {
        if let Some(replaced) = replace(Cow::Borrowed(&text), from, to) {
            text = Cow::Owned(replaced);
        }
    }
    text
}

pub(crate) fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// Removes the trust settings that OpenSSL appends to a trusted certificate.
fn without_trust(der: CertificateDer<'static>) -> CertificateDer<'static> {
    let length = SliceReader::new(&der).and_then(|mut reader| {
        let header = Header::decode(&mut reader)?;
        Ok(usize::try_from(reader.offset())? + usize::try_from(header.length)?)
    });
    match length {
        Ok(length) if length < der.len() => CertificateDer::from(der[..length].to_vec()),
        _ => der,
    }
}

/// Description of the supported keys.
const SUPPORTED: &str = "use RSA of 2048 bits or more, ECDSA on P-256 or P-384, or Ed25519";

/// Returns a message about a key that is not supported.
pub(crate) fn unsupported_key(key: &PrivateKeyDer<'_>) -> String {
    let kind = match key {
        PrivateKeyDer::Pkcs1(der) => rsa_kind(der.secret_pkcs1_der()),
        PrivateKeyDer::Sec1(der) => sec1_kind(der.secret_sec1_der()),
        PrivateKeyDer::Pkcs8(der) => pkcs8_kind(der.secret_pkcs8_der()),
        _ => None,
    };
    let kind = kind.unwrap_or_else(|| "malformed, or of an unknown kind".into());
    format!("the key is {kind}, which is not supported: {SUPPORTED}")
}

/// Describes a PKCS #8 key (RFC 5958, section 2).
fn pkcs8_kind(der: &[u8]) -> Option<String> {
    const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
    let read = SliceReader::new(der).ok()?.sequence(|inner| {
        u8::decode(inner)?;
        let algorithm = AlgorithmIdentifierRef::decode(inner)?;
        let key = OctetStringRef::decode(inner)?.as_bytes();
        inner.read_slice(inner.remaining_len())?;
        Ok((algorithm.oid, algorithm.parameters, key))
    });
    match read.ok()? {
        (RSA, _, key) => rsa_kind(key),
        (EC, curve, _) => Some(curve_kind(curve?.decode_as().ok()?)),
        (other, ..) => Some(algorithm_kind(other)),
    }
}

/// Describes an RSA key (RFC 8017, appendix A.1.2).
fn rsa_kind(der: &[u8]) -> Option<String> {
    let modulus = SliceReader::new(der).ok()?.sequence(|inner| {
        u8::decode(inner)?;
        let modulus = UintRef::decode(inner)?.as_bytes().len();
        inner.read_slice(inner.remaining_len())?;
        Ok(modulus)
    });
    Some(format!("RSA of {} bits", modulus.ok()? * 8))
}

/// Describes a SEC 1 key (RFC 5915, section 3).
fn sec1_kind(der: &[u8]) -> Option<String> {
    let curve = SliceReader::new(der).ok()?.sequence(|inner| {
        u8::decode(inner)?;
        OctetStringRef::decode(inner)?;
        let curve = ContextSpecific::<ObjectIdentifier>::decode(inner)?.value;
        inner.read_slice(inner.remaining_len())?;
        Ok(curve)
    });
    Some(curve_kind(curve.ok()?))
}

fn algorithm_kind(algorithm: ObjectIdentifier) -> String {
    match algorithm.to_string().as_str() {
        "1.3.101.110" => "X25519, which is for key exchange and cannot sign".into(),
        "1.3.101.111" => "X448, which is for key exchange and cannot sign".into(),
        "1.3.101.113" => "Ed448".into(),
        "1.2.840.10040.4.1" => "DSA".into(),
        "1.2.840.113549.1.1.10" => "RSA that is restricted to PSS".into(),
        "1.2.840.113549.1.3.1" => "Diffie-Hellman".into(),
        "2.16.840.1.101.3.4.3.17" | "2.16.840.1.101.3.4.3.18" | "2.16.840.1.101.3.4.3.19" => "ML-DSA".into(),
        other => format!("of an unknown algorithm (OID {other})"),
    }
}

fn curve_kind(curve: ObjectIdentifier) -> String {
    match curve.to_string().as_str() {
        "1.3.132.0.35" => "ECDSA on P-521".into(),
        "1.3.132.0.33" => "ECDSA on P-224".into(),
        "1.3.132.0.10" => "ECDSA on secp256k1".into(),
        "1.2.840.10045.3.1.1" => "ECDSA on P-192".into(),
        "1.3.36.3.3.2.8.1.1.7" => "ECDSA on brainpoolP256r1".into(),
        "1.3.36.3.3.2.8.1.1.11" => "ECDSA on brainpoolP384r1".into(),
        "1.3.36.3.3.2.8.1.1.13" => "ECDSA on brainpoolP512r1".into(),
        other => format!("ECDSA on an unknown curve (OID {other})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_with_byte_order_marks_and_other_labels_are_read() {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let (pem, der) = (made.cert.pem(), made.cert.der());
        let check = |text: &str, count: usize| {
            let found = certificates(text.as_bytes()).unwrap();
            assert_eq!(found, vec![der.clone(); count], "{text}");
        };
        check(&pem, 1);
        check(&format!("\u{feff}{pem}"), 1);
        check(&format!("{pem}\u{feff}{pem}"), 2);
        check(&format!("\u{feff}{}", pem.replace('\n', "\r\n")), 1);
        check(&pem.replace(" CERTIFICATE", " X509 CERTIFICATE"), 1);
        check(&format!("{pem}{}{pem}", pem.replace(" CERTIFICATE", " TRUSTED CERTIFICATE")), 3);
        check("", 0);
        let key = made.signing_key.serialize_pem();
        let der = |pem: &str| private_key(pem.as_bytes()).unwrap().secret_der().to_vec();
        assert_eq!(der(&format!("\u{feff}{key}")), der(&key));
        assert!(private_key(key.as_bytes()).is_ok() && private_key(pem.as_bytes()).is_err());
    }

    #[test]
    fn trust_settings_of_a_certificate_are_removed() {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let der = made.cert.der().clone();
        let longer = CertificateDer::from([&der[..], &[0x30, 2, 5, 0]].concat());
        assert_eq!(without_trust(longer), der);
        assert_eq!(without_trust(der.clone()), der);
        let cut = CertificateDer::from(der[..der.len() - 1].to_vec());
        assert_eq!(without_trust(cut.clone()), cut);
        assert!(without_trust(CertificateDer::from(Vec::new())).is_empty());
    }

    #[test]
    fn the_message_about_an_unsupported_key_names_its_kind() {
        let check = |pem: &str, kind: &str| {
            let message = unsupported_key(&private_key(pem.as_bytes()).unwrap());
            assert!(
                message.starts_with(&format!("the key is {kind}, which is not supported: use RSA")),
                "{message}"
            );
        };
        check(P521, "ECDSA on P-521");
        check(P521_SEC1, "ECDSA on P-521");
        check(RSA512, "RSA of 512 bits");
        check(RSA512_PKCS1, "RSA of 512 bits");
        check(ED448, "Ed448");
        let half = PrivateKeyDer::Pkcs8(vec![0x30, 3, 2, 1, 0].into());
        assert!(unsupported_key(&half).contains("malformed"));
    }

    const P521: &str = "-----BEGIN PRIVATE KEY-----
MIHuAgEAMBAGByqGSM49AgEGBSuBBAAjBIHWMIHTAgEBBEIAoiL9h9N9yZw4ZqPt
EdKUcwsNdkbDISAchvsm+aWKSw0lzgywJzeIkKOkfHISptbK/yO5YnFYROKu4g0C
mnbh3pWhgYkDgYYABACQ7lGeLUICpi/MpVHkXuLXWBB+MuDl4g6Wl4fDTd1drQqf
PFDHOJABpqAY5tm7KVO5x7rYmlMSiJ15NvL80gOFOAEXNd3230GG7jMmaTArytof
vLiw3umQyKeg/a1yn4WD43UNnF2ciCTC1F8MpJce+UbvRNYRPyG6v7OLKmHuxarF
aA==
-----END PRIVATE KEY-----
";

    const P521_SEC1: &str = "-----BEGIN EC PRIVATE KEY-----
MIHcAgEBBEIB+puAyY6CELeBy1nOvtilzNeqr1XQnJ4pV6+fYQVqNQzjTNWCw/0v
e2LjVqqbaz8gXeGM29phQ+ru6BTD4Qc2CjOgBwYFK4EEACOhgYkDgYYABAHjJKzZ
aq0dZafPV3PMsaa4pKXPGRhvxTeqfqXkFQml9mM5I0iMe451od2KswJ0hvsW02VO
ZenhukYqZd5PAHZauwHaUHX+nTaQ/OBtTiud6+J0eMYLxI3sI7yT6TDly87HQDnL
wOgoLZ+mWCI0FPG+cqLtgZQVaA08gSJQvDkEDen1Cw==
-----END EC PRIVATE KEY-----
";

    const RSA512: &str = "-----BEGIN PRIVATE KEY-----
MIIBVQIBADANBgkqhkiG9w0BAQEFAASCAT8wggE7AgEAAkEAvxZaSLabmx6CWAx4
0HH9Km7B9OiHkRyBCiziNkdrUhuy7/a7xyecepfDWlYbgmdT0Vw75IL6Mi1JOgNi
s+g4qQIDAQABAkAqVJNPhFRYOpv5UVn6IyZIHh0NWe2eMchMLsE18QBPQbzBliQD
R6tjIxJy9tTee3qKX87irSlI66DYghZ22llZAiEA++HvxSqK7NY/Go7wG+ttNhVN
8wYDBSNlHT+T5yLAE2MCIQDCNgDwl2XwzOUQFvO8151P0NJYM5jkMun/HeWt1y6P
gwIhAMf5XcH8f6V+h0UPnIOeCuu4SFWcPUOUEVACTOthhHsfAiEAs5q9w8I/xDG4
pOiVAE9mbCnyXR9aha+QNx6vCdW2eYECIAWkFxkm424o54ukBbY3Oe3BzccXfwnM
h7hYEGjZ2dcs
-----END PRIVATE KEY-----
";

    const RSA512_PKCS1: &str = "-----BEGIN RSA PRIVATE KEY-----
MIIBOwIBAAJBAL8WWki2m5seglgMeNBx/SpuwfToh5EcgQos4jZHa1Ibsu/2u8cn
nHqXw1pWG4JnU9FcO+SC+jItSToDYrPoOKkCAwEAAQJAKlSTT4RUWDqb+VFZ+iMm
SB4dDVntnjHITC7BNfEAT0G8wZYkA0erYyMScvbU3nt6il/O4q0pSOug2IIWdtpZ
WQIhAPvh78UqiuzWPxqO8BvrbTYVTfMGAwUjZR0/k+ciwBNjAiEAwjYA8Jdl8Mzl
EBbzvNedT9DSWDOY5DLp/x3lrdcuj4MCIQDH+V3B/H+lfodFD5yDngrruEhVnD1D
lBFQAkzrYYR7HwIhALOavcPCP8QxuKTolQBPZmwp8l0fWoWvkDcerwnVtnmBAiAF
pBcZJuNuKOeLpAW2Nzntwc3HF38JzIe4WBBo2dnXLA==
-----END RSA PRIVATE KEY-----
";

    const ED448: &str = "-----BEGIN PRIVATE KEY-----
MEcCAQAwBQYDK2VxBDsEOdAR1xqPO6woVH/Unx00e5hQsHGG3a/FAsGckaUkn9Cy
UzGm2f/gL8Vn+W+CVWLKrzXvKPtUSfHp4g==
-----END PRIVATE KEY-----
";
}
