// Command casfs mounts cold-archive vaults as directories.
package main

func main() {}
