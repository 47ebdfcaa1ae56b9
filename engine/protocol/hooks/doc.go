// Package hooks takes webhooks in: each source verifies them by the scheme of its sender, answers the handshake that the
// sender asks for, and makes an event of what was verified, stored once.
//
// A scheme is a type with a `yaml` tag for each option of rules, Validate, and Open, which returns its event.Verifier;
// one file each, and one line in the table of cmd/router. Verifiers judge the bytes as they came, compare in constant time
// and say in their errors what to look at, never a secret nor the right signature.
package hooks
