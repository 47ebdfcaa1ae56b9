package rules

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/millrace/millrace/engine/event"
)

// CheckCarried refuses a merge patch of a definition that would send stored secrets to somebody else: it has another
// scheme, host or port in a URL, and leaves secrets as they are that go there. Whoever changes a definition need not know
// its secrets, and would learn them so. A URL's are those that stand in its mapping and below. The error is *event.Faults
// with one for each, at its key; no value is in it. What is no document is MergePatch's to refuse.
func CheckCarried(old, patch []byte) error {
	was, err := readDoc(old)
	if err != nil {
		return err
	}
	change, err := readDoc(patch)
	if err != nil || change.kind != mapping {
		return nil
	}
	var c carried
	c.walk(plain(was), plain(change), "", "", false)
	if len(c.faults) > 0 {
		return &event.Faults{Is: event.ErrInvalid, List: c.faults}
	}
	return nil
}

type carried struct{ faults []event.Fault }

// walk looks at a mapping and what a patch makes of it, nil for nothing. moved is where the URL above goes by now, "" for
// where it went; secret is that all in it is.
func (c *carried) walk(old, patch *doc, path, moved string, secret bool) {
	for i, key := range old.keys {
		if to := patch.get(key); isURLKey(key) && to != nil && (to.kind != scalar || origin(to.text) != origin(old.items[i].text)) {
			moved = strings.TrimPrefix(path+"."+key, ".")
		}
	}
	for i, key := range old.keys {
		item, to, at := old.items[i], patch.get(key), strings.TrimPrefix(path+"."+key, ".")
		under := secret || secretKey(key)
		switch {
		case to != nil && to.kind != mapping: // taken away, or given anew
		case item.kind == mapping:
			c.walk(item, to, at, moved, under)
		case to == nil && under && moved != "" && item.kind != null:
			c.faults = append(c.faults, event.Fault{At: at, Detail: fmt.Sprintf("is kept, and %s would send it to another scheme, host or port; give it anew, or null to drop it", moved)})
		}
	}
}

// isURLKey reports whether what stands under a key says where its neighbours are sent: url, tokenUrl.
func isURLKey(key string) bool { return strings.HasSuffix(strings.ToLower(key), "url") }

// origin is scheme, host and port; the whole text where that cannot be told.
func origin(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return text
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}
