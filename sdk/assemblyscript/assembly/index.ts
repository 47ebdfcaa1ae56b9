// Functions for the Millrace event router. State, HTTP and secrets are in "kv", "http" and "secret" beside this
// file: importing one requires a router that has it.

export { Buffer, View, literal, text } from "./bytes";
export { Event, Tag } from "./event";
export { Attr, Results } from "./results";
export { handle } from "./handler";
export { Feature, HostError, Level, clock, config, configOr, count, lastError, log, now, random, require } from "./host";
export {
  Edit, EditError, Elements, Int, Path, appendString, apply, elements, get, getBool, getFloat, getInt, getString, getText, has,
  isObject, name, remove, replace, replaceText, set, setText,
} from "./json";
