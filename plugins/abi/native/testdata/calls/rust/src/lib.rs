//! Makes every call of the router that the SDK has and says what came of it, as its siblings do.

use millrace::{http, kv, Attr, Event, HostError, Level, Results};
use std::time::Duration;

fn calls(e: &Event, out: &mut Results) {
    let data = e.data_or_empty();
    if data == b"later" {
        return out.retry(Duration::from_millis(1500));
    }
    millrace::log(Level::Warn, "hello");
    millrace::count("seen", 2);
    let mut random = [0; 8];
    millrace::random(&mut random);
    let was = kv::get("last").unwrap().unwrap_or_else(|| b"none".to_vec());
    kv::put("last", data, Duration::from_secs(3600)).unwrap();
    kv::put("gone", b"x", Duration::ZERO).unwrap();
    kv::delete("gone").unwrap();
    let gone = kv::get("gone").unwrap().is_some();
    let sum = kv::add("sum", -3).unwrap();
    let bad = kv::add("last", 1) == Err(HostError::BadArgument);
    let token = millrace::secret("token").unwrap();
    let none = millrace::secret("none").is_ok();
    let answer = http::fetch(&http::Request {
        method: "POST",
        url: "https://api.example.com/x",
        headers: &[("X-A", "b")],
        body: b"ask",
        timeout: Duration::from_millis(1500),
    })
    .unwrap();
    let other = http::Request { url: "https://other.example.com/", ..http::Request::default() };
    let denied = http::fetch(&other).err() == Some(HostError::Denied);
    out.relabel(&[Attr::topic("audit"), Attr::subject("s"), Attr::unset("region")]);
    let said = format!(
        "now={} random={} was={} gone={} sum={} bad={} token={} none={} status={} tag={} body={} denied={}",
        millrace::now() == e.received(),
        random != [0; 8],
        String::from_utf8_lossy(&was),
        gone,
        sum,
        bad,
        String::from_utf8_lossy(&token),
        none,
        answer.status,
        answer.header("X-Tag").unwrap_or(""),
        answer.body.len(),
        denied
    );
    out.replace(said.as_bytes(), &[]);
}

millrace::handler!(calls);
