package filters

import "time"

// parseInstant reads an RFC 3339 time as event.ParseTime does, but without the allocation that a time.Time
// makes for some offsets. Anything else is missing.
func parseInstant(s string) value {
	if len(s) < len("2006-01-02T15:04:05Z") || s[4] != '-' || s[7] != '-' || s[10]|0x20 != 't' || s[13] != ':' || s[16] != ':' {
		return value{}
	}
	year, ok0 := digits(s[0:4], 0, 9999)
	month, ok1 := digits(s[5:7], 1, 12)
	day, ok2 := digits(s[8:10], 1, 31)
	hour, ok3 := digits(s[11:13], 0, 23)
	minute, ok4 := digits(s[14:16], 0, 59)
	second, ok5 := digits(s[17:19], 0, 60) // 60: a leap second counts as the second after it
	if !ok0 || !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return value{}
	}
	s = s[19:]
	var nanos int32
	if s[0] == '.' {
		i, scale := 1, int32(100_000_000)
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			nanos += int32(s[i]-'0') * scale
			scale /= 10
			i++
		}
		if i == 1 {
			return value{}
		}
		s = s[i:]
	}
	offset := 0
	switch {
	case s == "Z", s == "z":
	case len(s) == 6 && (s[0] == '+' || s[0] == '-') && s[3] == ':':
		h, ok1 := digits(s[1:3], 0, 23)
		m, ok2 := digits(s[4:6], 0, 59)
		if !ok1 || !ok2 {
			return value{}
		}
		if offset = h*3600 + m*60; s[0] == '-' {
			offset = -offset
		}
	default:
		return value{}
	}
	midnight := time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC)
	if midnight.Day() != day { // 30 February
		return value{}
	}
	t := midnight.Add(time.Duration(hour*3600+minute*60+second) * time.Second)
	return value{kind: instant, i: t.Unix() - int64(offset), n: nanos}
}

func digits(s string, from, to int) (int, bool) {
	n := 0
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, n >= from && n <= to
}

func formatInstant(v value) string {
	return `"` + time.Unix(v.i, int64(v.n)).UTC().Format(time.RFC3339Nano) + `"`
}
