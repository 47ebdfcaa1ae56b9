package mqtt

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/millrace/millrace/engine/access"
	"github.com/millrace/millrace/engine/admission"
	"github.com/millrace/millrace/engine/event"
)

// A violation is what a client did against MQTT: the connection ends with a reason code (4.13).
type violation struct {
	code   byte
	reason string
}

func (v *violation) Error() string { return v.reason }

// malformed is a packet that cannot be read (4.13.1).
func malformed(format string, args ...any) *violation {
	return &violation{packets.ErrMalformedPacket.Code, "malformed packet: " + fmt.Sprintf(format, args...)}
}

// wrong is a packet that can be read and that is not to be sent so or now.
func wrong(format string, args ...any) *violation {
	return &violation{packets.ErrProtocolViolation.Code, "protocol error: " + fmt.Sprintf(format, args...)}
}

// reasons is the one table of what errors come to in acknowledgements of PUBLISH and of SUBSCRIBE, the first that fits.
var reasons = [...]struct {
	err  error
	code packets.Code
}{
	{errUnmapped, packets.ErrTopicNameInvalid},
	{errName, packets.ErrTopicNameInvalid},
	{errPayload, packets.ErrPayloadFormatInvalid},
	{event.ErrTooLarge, packets.ErrQuotaExceeded}, // 0x95 is not for acknowledgements (2.4)
	{event.ErrFull, packets.ErrQuotaExceeded},
	{event.ErrSchema, packets.ErrPayloadFormatInvalid},
	{event.ErrInvalid, packets.ErrImplementationSpecificError},
	{event.ErrConflict, packets.ErrImplementationSpecificError},
	{event.ErrDenied, packets.ErrNotAuthorized},
	{access.ErrUnauthenticated, packets.ErrNotAuthorized},
	{event.ErrNotFound, packets.ErrTopicNameInvalid}, // as a name that no mapping fits: that a topic exists is secret
	{event.ErrUnavailable, packets.ErrImplementationSpecificError},
}

// maxReason is the most bytes of a reason string.
const maxReason = 256

// reasonOf is what an error comes to for the client. internal errors are the router's own fault: they are to be logged, and
// the client is told nothing of them.
func reasonOf(err error) (code byte, text string, internal bool) {
	if err == nil { // before anything escapes: every message that is acknowledged comes here
		return packets.CodeSuccess.Code, "", false
	}
	var v *violation
	var full *admission.TooMany
	switch {
	case errors.As(err, &v):
		return v.code, clip(v.reason), false
	case errors.As(err, &full):
		return packets.ErrQuotaExceeded.Code, clip(err.Error()), false
	}
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.code.Code, clip(err.Error()), false
		}
	}
	return packets.ErrImplementationSpecificError.Code, "an error of the router's own, which it has logged", true
}

// clip makes text fit for a packet: bounded, one line, UTF-8 (1.5.4).
func clip(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == utf8.RuneError || r == 0x7F {
			return ' '
		}
		return r
	}, text)
	if len(text) <= maxReason {
		return text
	}
	n := maxReason - 3
	for !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "..."
}

// connectCode is a reason code of CONNACK as a return code of MQTT 3.1.1 (3.2.2.3); false: there is none that says it, and
// the connection closes without a word.
func connectCode(code byte) (byte, bool) {
	switch code {
	case packets.ErrUnsupportedProtocolVersion.Code:
		return 1, true
	case packets.ErrClientIdentifierNotValid.Code:
		return 2, true
	case packets.ErrServerUnavailable.Code, packets.ErrServerBusy.Code, packets.ErrQuotaExceeded.Code, packets.ErrConnectionRateExceeded.Code:
		return 3, true
	case packets.ErrBadUsernameOrPassword.Code:
		return 4, true
	case packets.ErrNotAuthorized.Code, packets.ErrTopicNameInvalid.Code:
		return 5, true
	}
	return 0, false
}
