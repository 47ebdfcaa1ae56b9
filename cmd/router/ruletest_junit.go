package main

import (
	"encoding/xml"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// The results of tests in the XML that CI servers read. There is no standard of it; these are the elements and
// attributes that Jenkins, GitLab and GitHub's actions all take.

type junitSuites struct {
	XMLName  xml.Name   `xml:"testsuites"`
	Tests    int        `xml:"tests,attr"`
	Failures int        `xml:"failures,attr"`
	Time     string     `xml:"time,attr"`
	Suite    junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     string      `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	File    string        `xml:"file,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitFailure `xml:"failure"`
	Out     string        `xml:"system-out,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr"`
	Text    string `xml:",chardata"`
}

// writeJUnit writes results to a file.
func writeJUnit(file, path string, results []ruleResult, took time.Duration) error {
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
	s := junitSuite{Name: xmlText(path), Tests: len(results), Time: seconds(took)}
	for _, r := range results {
		at, _, _ := strings.Cut(r.At, ":")
		c := junitCase{Name: xmlText(r.Name), Class: xmlText(at), File: xmlText(r.At), Time: seconds(r.took), Out: xmlText(strings.Join(r.Logged, "\n"))}
		if !r.OK {
			s.Failures++
			text := strings.Join(r.Faults, "\n\n")
			first, _, _ := strings.Cut(text, "\n")
			c.Failure = &junitFailure{Message: xmlText(first), Type: "expectation", Text: xmlText(text)}
		}
		s.Cases = append(s.Cases, c)
	}
	doc, err := xml.MarshalIndent(junitSuites{Tests: s.Tests, Failures: s.Failures, Time: s.Time, Suite: s}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append([]byte(xml.Header), append(doc, '\n')...), 0o644); err != nil {
		return fmt.Errorf("--junit: %w", err)
	}
	return nil
}

// xmlText leaves out what XML 1.0 cannot hold (section 2.2).
func xmlText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == utf8.RuneError || r == 0xFFFE || r == 0xFFFF {
			return '?'
		}
		return r
	}, s)
}
