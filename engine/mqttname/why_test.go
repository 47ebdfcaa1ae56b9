package mqttname

import "testing"

func TestDiffers(t *testing.T) {
	for _, c := range matches {
		if got := Differs(c.filter, c.name); (got == "") != c.want {
			t.Errorf("Differs(%q, %q) = %q", c.filter, c.name, got)
		}
	}
	for _, c := range [][3]string{
		{"a/b/#", "a/c/d", `its level 2 is "b"; the name has "c" there`},
		{"a/+/c", "a/b", "it goes on after level 2; the name ends there"},
		{"a/+", "a/b/c", "it ends after level 2; the name goes on"},
		{"#", "$SYS", "it begins with a wildcard, which takes no name that begins with $"},
	} {
		if got := Differs(c[0], c[1]); got != c[2] {
			t.Errorf("Differs(%q, %q) = %q; want %q", c[0], c[1], got, c[2])
		}
	}
}

func TestBefore(t *testing.T) {
	for _, c := range [][3]string{
		{"a/b", "a/+", "level 2 is text there and + here"},
		{"a/+/c", "a/#", "level 2 is + there and # here"},
		{"a/b", "#", "level 1 is text there and # here"},
		{"a", "a/#", "it ends after level 1 and this goes on"},
		{"a/#", "a", ""},
		{"a/+", "a/b", ""},
		{"a/b", "a/b", ""},
	} {
		if got := Before(c[0], c[1]); got != c[2] {
			t.Errorf("Before(%q, %q) = %q; want %q", c[0], c[1], got, c[2])
		}
	}
}
