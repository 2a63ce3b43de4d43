package main

import (
	"time"

	"github.com/spf13/cobra"

	"lifeboat/verify/keys"
)

// newKeys is `lifeboat keys`.
func newKeys() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "make keys and certificates"}
	cmd.AddCommand(newKeysInit())
	return cmd
}

func newKeysInit() *cobra.Command {
	var out string
	var rsa int
	cmd := &cobra.Command{
		Use:   "init --out DIR",
		Short: "make a root, a release and a development CA, a signer of each, and the keyrings",
		Long: `Makes {root,release-ca,develop-ca,release,develop}.{cert,key}.pem and {release,develop}.keyring.pem.
Nothing is overwritten. A device gets one keyring: with release.keyring.pem it takes only what the
release key signed. Keep the keys of root and CAs off line.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rsa != 0 && (rsa < 2048 || rsa > 8192) {
				return usagef("--rsa %d is not a key size from 2048 to 8192", rsa)
			}
			if err := keys.Init(out, keys.Options{RSA: rsa, Now: time.Now()}); err != nil {
				return err
			}
			cmd.Printf("keys and keyrings are in %s\n", out)
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "folder for the files, made where it is missing")
	cmd.Flags().IntVar(&rsa, "rsa", 0, "RSA keys of so many bits, like 4096 (default: ECDSA P-256)")
	require(cmd, "out")
	return cmd
}
