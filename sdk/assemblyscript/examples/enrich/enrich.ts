// Shows every verdict of a function by what it does to orders: it hides one member of their data, marks them as
// enriched, splits, answers, drops and rejects some. The samples of the other SDKs do the same to the byte.

import {
  Attr, Buffer, Edit, EditError, Event, Feature, Path, Results, View, apply, configOr, elements, get, handle, isObject, literal, name,
  replaceText, require, set,
} from "../../assembly";
export * from "../../assembly/exports";

// What never changes is made once; buf serves every event, since an instance handles one at a time.
const edits: Edit[] = [replaceText(new Path(name(configOr("field", "email"))), literal("***")), set(new Path("enriched"), literal("true"))];
const by: Attr[] = [Attr.extension(literal("enrichedby"), literal("enrich"))];
const ofItem: Attr[] = [Attr.type(literal("order.item"))];
const items = new Path("items");
const total = new Path("total");
const buf = new Buffer();

require(Feature.Reply);
handle((e: Event, out: Results): void => {
  const type = e.type;
  const data = e.data;
  if (type == "order.ignored") {
    out.drop();
  } else if (type == "order.bad" || type == "order.split" || type == "order.ask") {
    if (!isObject(data)) out.reject(422, "data is not a JSON object");
    else if (type == "order.bad") out.reject(400, "bad order");
    else if (type == "order.split") split(data, out);
    else answer(data, out);
  } else {
    hide(data, out);
  }
});

// Delivers an order's items one by one.
function split(data: View, out: Results): void {
  const all = elements(data, items);
  let none = true;
  for (let item = all.next(); item; item = all.next()) {
    out.replace(item, ofItem);
    none = false;
  }
  if (none) out.drop();
}

// Tells the order's total to whoever asks, and lets the order through.
function answer(data: View, out: Results): void {
  const v = get(data, total);
  buf.clear().text('{"total":');
  if (v) buf.append(v);
  else buf.text("null");
  buf.push(0x7d);
  out.reply(200, "application/json", buf.view());
  out.pass();
}

// Masks the field where there is one and marks the order, in a single pass over its data.
function hide(data: View, out: Results): void {
  if (apply(buf.clear(), data, edits) == EditError.None) out.replace(buf.view(), by);
  else out.reject(422, "data is not a JSON object"); // neither edit can fail in an object
}
