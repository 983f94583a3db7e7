//! The key `plane`.

use super::*;
use evener_core::spec::Plane;

const MISTAKES: &str = r#"
plane = "xdp"
    service `s`: plane "xdp" is not in this version: it must be "proxy"
plane = "ipvs"
    service `s`: plane "ipvs" is not in this version: it must be "proxy"
plane = "userspace"
    service `s`: plane must be "proxy", got "userspace"
plane = 1
    service `s`: plane must be "proxy", got 1
plane = proxy
    `proxy` is not defined: write plane = "proxy"
"#;

#[test]
fn the_proxy_is_the_only_plane_of_this_version() {
    let service = |key: &str| format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:1\", {key} }}");
    for key in ["", "plane = \"proxy\""] {
        assert_eq!(load_text(&service(key)).unwrap().spec.services[0].plane, Plane::Proxy, "{key}");
    }
    check_cases(MISTAKES, service);
}
