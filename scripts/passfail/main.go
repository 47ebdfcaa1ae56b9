// Command passfail reads the output of `go test -json` on standard input, prints what failed and how long each
// package took, and adds a line of counts to a file, so that several runs can be summed up:
//
//	go test -json ./... | passfail -tally FILE -name unit
//	passfail -tally FILE -sum
//
// The sum begins with what failed, in short: the whole is far above by then, and logs are cut at their end. It is kept
// in FILE.failed.
//
// It exits with 1 if anything failed, if nothing ran, or if the input ends before a package has.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, in io.Reader, out, errs io.Writer) int {
	f := flag.NewFlagSet("passfail", flag.ContinueOnError)
	f.SetOutput(errs)
	tally := f.String("tally", "", "file of counts, a line a run")
	name := f.String("name", "tests", "what this run is called")
	check := f.String("check", "", "add a check that is no go test: pass or fail")
	sum := f.Bool("sum", false, "print what failed, in short, and the sum of the tally")
	if f.Parse(args) != nil {
		return 2
	}
	var r result
	var err error
	switch {
	case *sum:
		r, err = readTally(*tally)
		if err == nil {
			var failures []byte
			if failures, err = os.ReadFile(*tally + ".failed"); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			fmt.Fprintf(out, "%s%d passed, %d failed\n", failures, r.passed, r.failed)
		}
	case *check != "":
		r = result{passed: 1}
		if *check != "pass" {
			r = result{failed: 1, failures: []string{"FAIL  " + *name + "\n"}}
			fmt.Fprint(out, r.failures[0])
		}
		err = addTally(*tally, *name, r)
	default:
		if r, err = read(in, out); err == nil {
			err = addTally(*tally, *name, r)
		}
	}
	if err != nil {
		fmt.Fprintf(errs, "passfail: %v\n", err)
		return 1
	}
	if r.failed > 0 || r.passed == 0 {
		return 1
	}
	return 0
}

type result struct {
	passed, failed int
	failures       []string // each in a few lines
}

// Bounds of a failure in short.
const (
	shortLines = 6
	shortLine  = 400 // bytes
)

// place finds what a test said itself, but for the logs of what it ran: the lines that name a place in a test.
var place = regexp.MustCompile(`^\s*\w+_test\.go:\d+: `)

// inShort is a failed test and the first that it said of it.
func inShort(name string, words []string) string {
	out := "FAIL  " + name + "\n"
	left := shortLines
	for line := range strings.Lines(strings.Join(words, "")) {
		if !place.MatchString(line) || strings.Contains(line, ": the log of ") {
			continue
		}
		if line = strings.TrimRight(line, "\n"); len(line) > shortLine {
			line = strings.ToValidUTF8(line[:shortLine], "") + "…"
		}
		out += line + "\n"
		if left--; left == 0 {
			break
		}
	}
	return out
}

// testEvent is a line of test2json.
type testEvent struct {
	Action, Package, Test, Output, ImportPath string
	FailedBuild                               string
	Elapsed                                   float64
}

// read counts tests that passed and failed. Tests that contain others are counted too; a package that fails
// without a failed test (it does not build, or it crashed) counts as one failure.
func read(in io.Reader, out io.Writer) (result, error) {
	var r result
	said := map[string][]string{}   // by package and test: what it printed
	failedIn := map[string]int{}    // by package: tests that failed
	open := map[string]bool{}       // packages that have begun and not ended
	builds := map[string][]string{} // what the compiler said
	lines := bufio.NewReaderSize(in, 1<<16)
	for {
		line, err := lines.ReadString('\n')
		if err != nil && line == "" {
			break
		}
		var e testEvent
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Fprint(out, line) // the go command's own words
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "build-output":
			builds[e.ImportPath] = append(builds[e.ImportPath], e.Output)
		case "start":
			open[e.Package] = true
		case "output":
			said[key] = append(said[key], e.Output)
		case "pass", "skip":
			if e.Test == "" {
				delete(open, e.Package)
				if e.Action == "pass" {
					fmt.Fprintf(out, "ok    %-60s %.1fs\n", short(e.Package), e.Elapsed)
				}
			} else if e.Action == "pass" {
				r.passed++
			}
			delete(said, key)
		case "fail":
			if e.Test != "" {
				r.failed++
				failedIn[e.Package]++
				r.failures = append(r.failures, inShort(short(e.Package)+" "+e.Test, said[key]))
				fmt.Fprintf(out, "FAIL  %s %s\n%s", short(e.Package), e.Test, strings.Join(said[key], ""))
				delete(said, key)
				continue
			}
			delete(open, e.Package)
			fmt.Fprintf(out, "FAIL  %-60s %.1fs\n", short(e.Package), e.Elapsed)
			if failedIn[e.Package] == 0 {
				r.failed++
				r.failures = append(r.failures, inShort(short(e.Package), said[key]))
				fmt.Fprint(out, strings.Join(append(builds[e.FailedBuild], said[key]...), ""))
				for k, words := range said { // what was running when it died
					if strings.HasPrefix(k, e.Package+"\x00") && k != key {
						fmt.Fprint(out, strings.Join(words, ""))
					}
				}
			}
		}
	}
	var cut []string
	for p := range open {
		cut = append(cut, p)
	}
	slices.Sort(cut)
	for _, p := range cut {
		r.failed++
		r.failures = append(r.failures, "FAIL  "+short(p)+" never ended\n")
		fmt.Fprint(out, r.failures[len(r.failures)-1])
	}
	return r, nil
}

func short(pkg string) string { return strings.TrimPrefix(pkg, "github.com/millrace/millrace/") }

func addTally(file, name string, r result) error {
	if file == "" {
		return nil
	}
	if err := appendTo(file, fmt.Sprintf("%d %d %s\n", r.passed, r.failed, name)); err != nil {
		return err
	}
	return appendTo(file+".failed", strings.Join(r.failures, ""))
}

func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func readTally(file string) (result, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return result{}, err
	}
	var sum result
	for line := range strings.Lines(string(b)) {
		var r result
		var name string
		if _, err := fmt.Sscan(line, &r.passed, &r.failed, &name); err != nil {
			return result{}, fmt.Errorf("%s: %q: %w", file, line, err)
		}
		sum.passed += r.passed
		sum.failed += r.failed
	}
	return sum, nil
}
