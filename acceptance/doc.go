// Package acceptance holds tests of the built binary from outside: each starts `router` as a child process on a directory of its
// own and speaks to it as its users do, over HTTP, with signals, and with other people's clients and verifiers. Expectations
// are computed without the packages under test.
//
// MILLRACE_LONG=1 runs the long forms: 200 cycles of kill -9 instead of 10, and minutes of reloading instead of seconds; give
// them -timeout 60m. MILLRACE_SOAK=<minutes> is how long the soak lasts, instead of seconds.
package acceptance
