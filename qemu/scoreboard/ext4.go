package main

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
)

// makeExt4 makes an ext4 file system of 32 MiB with the defaults of Debian's mke2fs, all of it initialised, and files.
func makeExt4(name string, files map[string]string, dirs ...string) error {
	tree, err := os.MkdirTemp(filepath.Dir(name), "tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			return err
		}
	}
	for to, content := range files {
		if err := os.WriteFile(filepath.Join(tree, to), []byte(content), 0o644); err != nil {
			return err
		}
	}
	os.Remove(name)
	return run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-m", "0", "-U", "6c696665-626f-6174-0000-000000000001",
		"-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-d", tree, name, "32M")
}

// readExt4 reads files as GRUB does, which knows no journal, and as a system does that checks the file system before it
// mounts it: e2fsck -p replays the journal and mends what it can without a person.
func readExt4(files ...string) Reader {
	return func(image string) (View, error) {
		loader, err := grubFiles(image, files)
		if err != nil {
			return View{}, err
		}
		replayed := image + ".replayed"
		defer os.Remove(replayed)
		if err := run("cp", "--sparse=always", image, replayed); err != nil {
			return View{}, err
		}
		out, err := exec.Command("e2fsck", "-p", replayed).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return View{}, err
		}
		if exit != nil && exit.ExitCode() >= 4 {
			system := Content{}
			for _, f := range files {
				system[f] = notMounted + firstLine(string(out))
			}
			return View{loader, system}, nil
		}
		system, err := grubFiles(replayed, files)
		return View{loader, system}, err
	}
}

// readGRUBFAT reads files from a FAT file system: with GRUB's driver, and as the system does.
func readGRUBFAT(files ...string) Reader {
	return func(image string) (View, error) {
		loader, err := grubFiles(image, files)
		if err != nil {
			return View{}, err
		}
		system, err := fatFiles(image, files...)
		return View{loader, maps.Clone(system)}, err
	}
}
