//! `GET /v1/openapi.json`: the description of the API, which is made from its handlers and records.

use super::problem::{Failures, Problem};
use super::{
    access, cache, clients, configuration, connections, events, explain, metrics, plan, server_state,
    servers, sticky, upgrade,
};
use axum::Json;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};

#[derive(OpenApi)]
#[openapi(
    info(title = "Evener", description = "The admin API of Evener. docs/api.md describes what is stable."),
    paths(
        super::status,
        super::reload,
        upgrade::upgrade,
        server_state::set_state,
        servers::add,
        servers::change,
        servers::remove,
        access::access,
        access::change_access,
        clients::clients,
        connections::connections,
        connections::close,
        connections::close_all,
        events::events,
        sticky::sticky,
        cache::expunge,
        explain::explain,
        configuration::configuration,
        plan::plan,
        plan::apply,
        plan::confirm,
        plan::go_back,
        metrics::metrics,
        document
    ),
    components(schemas(Problem))
)]
struct Document;

/// Returns the whole document.
fn whole() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    // Over TCP every request has a token; at the admin socket the user is known.
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    if let Some(components) = &mut document.components {
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
    }
    document.security =
        Some(vec![SecurityRequirement::default(), SecurityRequirement::new("token", [""; 0])]);
    document
}

#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "Done", body = Object), Failures))]
pub(super) async fn document() -> Response {
    Json(whole()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_described() {
        let source = [include_str!("../admin.rs"), include_str!("plan.rs")].concat();
        let routes = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
        let routes: BTreeSet<&str> = routes.collect();
        let document = whole();
        let described: BTreeSet<&str> = document.paths.paths.keys().map(String::as_str).collect();
        assert!(routes.len() > 10, "{routes:?}");
        assert_eq!(routes, described);
    }
}
