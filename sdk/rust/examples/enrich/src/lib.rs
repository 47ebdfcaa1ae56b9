//! Shows every verdict of a function by what it does to orders: it hides one member of their data, marks
//! them as enriched, splits, answers, drops and rejects some. The samples of the other SDKs do the same to
//! the byte.

use millrace::json::{self, Edit};
use millrace::{Attr, Event, Results};

const NO_OBJECT: &str = "data is not a JSON object";

struct Enrich {
    field: String, // the path of what to hide
    buf: Vec<u8>,  // serves every event: an instance handles one at a time
}

impl Enrich {
    fn new() -> Self {
        let field = millrace::config("field").unwrap_or_else(|| "email".into());
        Enrich { field: json::name(&field), buf: Vec::new() }
    }

    fn handle(&mut self, e: &Event, out: &mut Results) {
        let data = e.data_or_empty();
        match e.event_type() {
            "order.ignored" => out.drop(),
            "order.bad" | "order.split" | "order.ask" if !json::is_object(data) => out.reject(422, NO_OBJECT),
            "order.bad" => out.reject(400, "bad order"),
            "order.split" => split(data, out),
            "order.ask" => self.answer(data, out),
            _ => self.hide(data, out),
        }
    }

    /// Tells the order's total to whoever asks, and lets the order through.
    fn answer(&mut self, data: &[u8], out: &mut Results) {
        self.buf.clear();
        self.buf.extend_from_slice(b"{\"total\":");
        self.buf.extend_from_slice(json::get(data, "total").unwrap_or(b"null"));
        self.buf.push(b'}');
        out.reply(200, "application/json", &self.buf);
        out.pass();
    }

    /// Masks the field where there is one and marks the order, in a single pass over its data.
    fn hide(&mut self, data: &[u8], out: &mut Results) {
        self.buf.clear();
        let edits = [Edit::replace_text(&self.field, "***"), Edit::set("enriched", "true")];
        match json::apply(&mut self.buf, data, &edits) {
            Ok(()) => out.replace(&self.buf, &[Attr::extension("enrichedby", "enrich")]),
            Err(_) => out.reject(422, NO_OBJECT), // neither can fail in an object
        }
    }
}

/// Delivers an order's items one by one.
fn split(data: &[u8], out: &mut Results) {
    let mut none = true;
    for item in json::elements(data, "items") {
        out.replace(item, &[Attr::event_type("order.item")]);
        none = false;
    }
    if none {
        out.drop();
    }
}

millrace::handler!(Enrich::new, Enrich::handle);
