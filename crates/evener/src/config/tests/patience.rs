//! The keys `min_rate`, `abort_on_close`, `queue` and `retry_budget`.

use super::*;
use evener_core::pace::MinRate;
use evener_core::spec::{AbortOnClose, HttpSpec, PoolSpec, QueueSpec, RetryBudgetSpec};

fn http(keys: &str) -> HttpSpec {
    let text =
        format!("service \"s\" {{ listen = \"127.0.0.1:1\", protocol = \"http\", \"10.0.0.1:80\", {keys} }}");
    let config = load_text(&text).unwrap();
    (**config.spec.services[0].http.as_ref().unwrap()).clone()
}

fn pool(key: &str) -> PoolSpec {
    load_text(&format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:80\", {key} }}"))
        .unwrap()
        .spec
        .pools[0]
        .clone()
}

fn queue(key: &str) -> Option<QueueSpec> {
    pool(key).queue
}

#[test]
fn min_rate_is_a_number_a_table_or_false() {
    let rate =
        |bytes_per_second, seconds| Some(MinRate { bytes_per_second, window: Duration::from_secs(seconds) });
    assert_eq!(http("").min_rate, rate(240, 60));
    assert_eq!(http("min_rate = 1000").min_rate, rate(1000, 60));
    assert_eq!(http("min_rate = { window = \"10s\" }").min_rate, rate(240, 10));
    assert_eq!(http("min_rate = { rate = 7, window = \"1h\" }").min_rate, rate(7, 3600));
    for none in ["false", "0", "{ rate = 0 }"] {
        assert_eq!(http(&format!("min_rate = {none}")).min_rate, None, "{none}");
    }
}

#[test]
fn abort_on_close_is_idempotent_true_or_false() {
    let abort = |keys: &str| http(keys).abort_on_close;
    assert_eq!(abort(""), AbortOnClose::Idempotent);
    assert_eq!(abort("abort_on_close = \"idempotent\""), AbortOnClose::Idempotent);
    assert_eq!(abort("abort_on_close = true"), AbortOnClose::Always);
    assert_eq!(abort("abort_on_close = false"), AbortOnClose::Never);
}

#[test]
fn queue_is_a_table_true_or_false() {
    let spec = |size, seconds| Some(QueueSpec { size, timeout: Duration::from_secs(seconds) });
    assert_eq!(queue(""), spec(1024, 5));
    assert_eq!(queue("queue = true"), spec(1024, 5));
    assert_eq!(queue("queue = { size = 7 }"), spec(7, 5));
    assert_eq!(queue("queue = { timeout = \"1m\" }"), spec(1024, 60));
    assert_eq!(queue("queue = false"), None);
}

#[test]
fn retry_budget_is_a_share_a_table_true_or_false() {
    let budget = |key: &str| pool(key).retry_budget;
    let spec = |share_percent, min_per_second| Some(RetryBudgetSpec { share_percent, min_per_second });
    assert_eq!(budget(""), spec(20, 10));
    assert_eq!(budget("retry_budget = true"), spec(20, 10));
    assert_eq!(budget("retry_budget = \"5%\""), spec(5, 10));
    assert_eq!(budget("retry_budget = { share = \"100%\" }"), spec(100, 10));
    assert_eq!(budget("retry_budget = { min_per_second = 0 }"), spec(20, 0));
    assert_eq!(budget("retry_budget = false"), None);
}

#[test]
fn wrong_retry_budgets_have_their_message() {
    let check = |value: &str, message: &str| {
        let text =
            format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:80\", retry_budget = {value} }}");
        check_problems(&text, &[&format!("c.lua:1: service `s`: {message}")]);
    };
    check(
        "20",
        "retry_budget must be a share of the requests such as \"20%\", a table, or false for no limit, got 20",
    );
    let percentage = "must be a whole percentage from \"0%\" to \"100%\"";
    check("\"0.2\"", &format!("retry_budget {percentage}, got \"0.2\""));
    check("{ share = \"101%\" }", &format!("retry_budget.share {percentage}, got \"101%\""));
    check("{ share = 20 }", &format!("retry_budget.share {percentage}, got 20"));
    check("{ min_per_second = -1 }", "retry_budget.min_per_second must be between 0 and 1000000, got -1");
}

#[test]
fn wrong_values_have_their_message() {
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:80\", queue = 7 }",
        &["c.lua:1: service `s`: queue must be { size = 1024, timeout = \"5s\" }, or false for none, got 7"],
    );
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\", protocol = \"http\", \"10.0.0.1:80\", abort_on_close = \"always\" }",
        &["c.lua:1: service `s`: abort_on_close must be \"idempotent\", true or false, got \"always\""],
    );
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\", protocol = \"http\", \"10.0.0.1:80\", min_rate = { window = \"1ms\" } }",
        &["c.lua:1: service `s`: min_rate.window must be between 1s and 1h, got \"1ms\""],
    );
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\", protocol = \"http\", \"10.0.0.1:80\", min_rate = -1 }",
        &["c.lua:1: service `s`: min_rate must be between 0 and 1000000000 bytes a second, got -1"],
    );
}
