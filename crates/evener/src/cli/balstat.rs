//! `evener balstat`: the servers, and the clients in sticky tables with their servers, as the two tables of
//! mname-balancer's `balstat`.

use super::AdminArgs;
use super::connections::path_with;
use crate::state::StickyView;

/// `evener balstat [POOL] [--limit N]`
pub(super) async fn balstat(
    pool: Option<&str>,
    limit: Option<usize>,
    admin_args: &AdminArgs,
) -> anyhow::Result<()> {
    let path = path_with("/v1/sticky", &[("pool", pool)], limit);
    let tables: StickyView = admin_args.client()?.get(&path).await?;
    if !admin_args.is_json() && tables.is_empty() {
        eprintln!("no pool that is sticky by address has servers");
    }
    admin_args.print_part(&tables, StickyView::text, tables.counts())
}
