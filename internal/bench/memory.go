package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// reportingOrder is the smallest free block, as a power of two of pages, that a guest tells its host about so that
// the host takes the memory back (Linux mm/page_reporting.c, virtio-balloon's free page reporting).
const reportingOrder = "/sys/module/page_reporting/parameters/page_reporting_order"

// aboveEveryOrder is more than any block of the kernel's page allocator has: nothing is reported.
const aboveEveryOrder = "11"

// keepMemory has a virtual machine keep its free memory as long as the run takes, and touches all of it once. Whoever
// touches memory that the host took back waits until the host has found some again: a write(2) of a GiB into
// the page cache was seen to take 2.4 s instead of 0.23. That hits whoever comes next, by chance.
// cleanUp undoes it.
func (b *bench) keepMemory() error {
	before, err := os.ReadFile(reportingOrder)
	if err != nil {
		return nil // such a kernel or machine does not do that
	}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	err = os.WriteFile(reportingOrder, []byte(aboveEveryOrder), 0)
	if err == nil {
		b.order = before
	}
	b.mu.Unlock()
	if err != nil {
		b.note("This machine may give free memory back to its host (%s cannot be raised: %v): whoever touches it next waits.", reportingOrder, err)
		return nil
	}
	b.note("Free memory was not given back to the host during the run (%s = %s instead of %s), and most of it was touched before: otherwise whoever touches it next waits for the host.",
		reportingOrder, aboveEveryOrder, strings.TrimSpace(string(before)))
	return touchMemory()
}

// touchMemory touches most of what is free.
func touchMemory() error {
	size, err := available()
	if err != nil {
		return err
	}
	m, err := unix.Mmap(-1, 0, int(size/8*7), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	defer unix.Munmap(m)
	unix.Madvise(m, unix.MADV_HUGEPAGE) // only makes it faster
	for i := 0; i < len(m); i += os.Getpagesize() {
		m[i] = 1
	}
	return nil
}

// available is MemAvailable of /proc/meminfo, in bytes.
func available() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(s.Text(), "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemAvailable")
}
