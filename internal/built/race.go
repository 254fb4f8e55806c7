//go:build race

package built

// Race says whether the tests, and so the program, have the race detector.
const Race = true
