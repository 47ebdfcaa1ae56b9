package event

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // zones on machines without a database of them: small boxes and bare containers
)

// Schedule is the definition of a schedule: an event that the router publishes by itself, again and again. Either Cron
// or Every is set.
type Schedule struct {
	Name     string
	Topic    string
	Cron     string        // five fields, or @hourly and the like
	Every    time.Duration // multiples of it since 1970-01-01T00:00:00Z
	TimeZone string        // of Cron: a name of the IANA database; UTC
	Missed   Missed

	Type    string // of the event; "schedule"
	Source  string // "/schedules/<name>"
	Subject string
	Key     string // partitionkey
	Data    []byte // JSON; nil: none
	Owner   Owner
}

// WithDefaults returns s with its empty fields filled.
func (s Schedule) WithDefaults() Schedule {
	if s.TimeZone == "" {
		s.TimeZone = "UTC"
	}
	if s.Type == "" {
		s.Type = "schedule"
	}
	if s.Source == "" {
		s.Source = "/schedules/" + s.Name
	}
	return s
}

// Event is what is published for a time.
func (s Schedule) Event(at time.Time) Event {
	text := at.UTC().Format(time.RFC3339)
	ev := Event{ID: s.Name + "-" + text, Source: s.Source, Type: s.Type, Subject: s.Subject, Time: text, PartitionKey: s.Key, Data: s.Data}
	if s.Data != nil {
		ev.DataContentType = "application/json"
	}
	return ev
}

// Missed says what becomes of times at which the router did not run.
type Missed uint8

// MissedOnce publishes the last of them, MissedSkip none, MissedAll every one, within a bound.
const (
	MissedOnce Missed = iota
	MissedSkip
	MissedAll
)

// String is the name that rules use.
func (m Missed) String() string { return [...]string{"once", "skip", "all"}[m] }

// Times is when a schedule is due.
type Times struct {
	every time.Duration
	cron  *Cron
	zone  *time.Location
}

// Times reads a schedule's cron and time zone.
func (s Schedule) Times() (Times, error) {
	if s.Every > 0 {
		return Times{every: s.Every}, nil
	}
	c, err := ParseCron(s.Cron)
	if err != nil {
		return Times{}, Invalid("cron", err.Error())
	}
	zone, err := LoadZone(s.TimeZone)
	if err != nil {
		return Times{}, Invalid("timezone", err.Error())
	}
	return Times{cron: c, zone: zone}, nil
}

// Next is the first time after t; zero if there is none in the next hundred years. A time of day that a clock set
// forward leaves out is due at the moment it is set; one that comes twice is due the first time.
func (x Times) Next(t time.Time) time.Time {
	if x.every > 0 {
		return nextMultiple(t, x.every)
	}
	return x.cron.Next(t, x.zone)
}

func nextMultiple(t time.Time, every time.Duration) time.Time {
	ns := t.UnixNano()
	over := ns % int64(every)
	if over < 0 {
		over += int64(every)
	}
	return time.Unix(0, ns-over+int64(every)).UTC()
}

// LoadZone finds a time zone by its IANA name.
func LoadZone(name string) (*time.Location, error) {
	if name == "" || name == "Local" { // the machine's own would make the same rules mean something else elsewhere
		return nil, fmt.Errorf("time zone %q is none; %w", name, errZone)
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("time zone %.60q is unknown; %w", name, errZone)
	}
	return zone, nil
}

var errZone = errors.New("want a name of the IANA database, such as UTC, Europe/Berlin or America/New_York")

// Cron is a cron expression: minute, hour, day of the month, month and day of the week. Each field is a set of bits.
// Where both fields of days are given, a day that fits either is meant; where one begins with *, both must fit
// (crontab(5)).
type Cron struct {
	minutes, hours, days, months, weekdays uint64
	either                                 bool
}

type cronField struct {
	name   string
	lo, hi int
	names  string // of values from lo on, three letters each
}

var cronFields = [5]cronField{
	{"minute", 0, 59, ""}, {"hour", 0, 23, ""}, {"day of the month", 1, 31, ""},
	{"month", 1, 12, "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC"}, {"day of the week", 0, 7, "SUNMONTUEWEDTHUFRISAT"},
}

var cronNames = map[string]string{
	"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}

// ParseCron reads five fields (lists, ranges, steps, names of months and days), @yearly, @annually, @monthly, @weekly,
// @daily, @midnight or @hourly.
func ParseCron(text string) (*Cron, error) {
	expr := strings.TrimSpace(text)
	if strings.HasPrefix(expr, "@") {
		whole, ok := cronNames[strings.ToLower(expr)]
		if !ok {
			return nil, fmt.Errorf("%.60q is none of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually; for an interval write every: 15m", expr)
		}
		expr = whole
	}
	fields := strings.Fields(expr)
	if len(fields) != len(cronFields) {
		return nil, fmt.Errorf("%.60q has %d fields; want 5: minute, hour, day of the month, month, day of the week, such as \"0 2 * * *\"; seconds and years are none of them", text, len(fields))
	}
	c := &Cron{}
	sets := [5]*uint64{&c.minutes, &c.hours, &c.days, &c.months, &c.weekdays}
	for i, f := range cronFields {
		set, err := f.parse(fields[i])
		if err != nil {
			return nil, err
		}
		*sets[i] = set
	}
	c.weekdays |= c.weekdays >> 7 & 1 // 7 is Sunday too
	c.either = fields[2][0] != '*' && fields[4][0] != '*'
	if c.nextCivil(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fmt.Errorf("%.60q is never: there is no such day", text)
	}
	return c, nil
}

func (f cronField) parse(text string) (set uint64, err error) {
	for part := range strings.SplitSeq(text, ",") {
		span, stepText, stepped := strings.Cut(part, "/")
		lo, hi, step := f.lo, f.hi, 1
		if f.hi == 7 {
			hi = 6 // * is each day once
		}
		if span != "*" {
			from, to, ranged := strings.Cut(span, "-")
			if lo, err = f.value(from); err != nil {
				return 0, err
			}
			switch {
			case ranged:
				if hi, err = f.value(to); err != nil {
					return 0, err
				}
			case !stepped:
				hi = lo
			}
			if hi < lo {
				return 0, fmt.Errorf("%s: %.40q runs backwards; write it as two, such as %d-%d,%d-%d", f.name, part, lo, f.hi, f.lo, hi)
			}
		}
		if stepped {
			if step, err = strconv.Atoi(stepText); err != nil || step < 1 || step > f.hi {
				return 0, fmt.Errorf("%s: the step of %.40q is %.20q; want 1 to %d", f.name, part, stepText, f.hi)
			}
		}
		for v := lo; v <= hi; v += step {
			set |= 1 << v
		}
	}
	return set, nil
}

func (f cronField) value(text string) (int, error) {
	if i := strings.Index(f.names, strings.ToUpper(text)); len(text) == 3 && i >= 0 && i%3 == 0 {
		return f.lo + i/3, nil
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < f.lo || v > f.hi || text[0] == '+' {
		names := ""
		if f.names != "" {
			names = fmt.Sprintf(", or %s to %s", f.names[:3], f.names[len(f.names)-3:])
		}
		return 0, fmt.Errorf("%s: %.40q is none; want *, or %d to %d%s, lists with commas, ranges with - and steps with /", f.name, text, f.lo, f.hi, names)
	}
	return v, nil
}

// Next is the first time after t that the expression fits on clocks of the zone.
func (c *Cron) Next(t time.Time, zone *time.Location) time.Time {
	for civil := wall(t, zone); ; {
		civil = c.nextCivil(civil)
		if civil.IsZero() {
			return time.Time{}
		}
		if at := instant(civil, zone); at.After(t) { // not one of those that came twice, the second time
			return at
		}
	}
}

// nextCivil is Next for clocks that are never set; both times are written as UTC.
func (c *Cron) nextCivil(t time.Time) time.Time {
	year, month, day := t.Date()
	hour, minute := t.Hour(), t.Minute()+1
	for date := time.Date(year, month, day, 0, 0, 0, 0, time.UTC); date.Year() < year+100; date = date.AddDate(0, 0, 1) {
		if c.months&(1<<date.Month()) == 0 {
			date = time.Date(date.Year(), date.Month()+1, 0, 0, 0, 0, 0, time.UTC) // its last day: the loop goes on
			hour, minute = 0, 0
			continue
		}
		if c.fits(date) {
			for h := next(c.hours, hour); h < 24; h = next(c.hours, h+1) {
				if h != hour {
					minute = 0
				}
				if m := next(c.minutes, minute); m < 60 {
					return date.Add(time.Duration(h)*time.Hour + time.Duration(m)*time.Minute)
				}
			}
		}
		hour, minute = 0, 0
	}
	return time.Time{}
}

func (c *Cron) fits(date time.Time) bool {
	day, weekday := c.days&(1<<date.Day()) != 0, c.weekdays&(1<<date.Weekday()) != 0
	if c.either {
		return day || weekday
	}
	return day && weekday
}

// next is the first of a set from a value on; 64 if there is none.
func next(set uint64, from int) int {
	if from > 63 {
		return 64
	}
	return bits.TrailingZeros64(set >> from << from)
}

// wall is what a clock of the zone shows, written as UTC.
func wall(t time.Time, zone *time.Location) time.Time {
	t = t.In(zone)
	year, month, day := t.Date()
	return time.Date(year, month, day, t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
}

// instant is when a clock of the zone shows what civil says: the first time, or, if it never does, when it is set
// past it.
func instant(civil time.Time, zone *time.Location) time.Time {
	year, month, day := civil.Date()
	t := time.Date(year, month, day, civil.Hour(), civil.Minute(), 0, 0, zone)
	from, to := t.ZoneBounds()
	switch shown := wall(t, zone); {
	case shown.After(civil):
		return from.UTC()
	case shown.Before(civil):
		return to.UTC()
	case from.IsZero():
		return t.UTC()
	}
	_, before := from.Add(-time.Second).Zone()
	if earlier := civil.Add(-time.Duration(before) * time.Second); earlier.Before(from) { // civil is written as UTC
		return earlier.UTC()
	}
	return t.UTC()
}
