package badinputs

// Place says where rows are that are no bundles, or of which bundles are only examples.
type Place struct {
	From, To int    // rows
	Test     string // "package Test": each number stands in it or above it; "" where there is none
	Why      string // there is none, or not all
}

// Elsewhere are the rows that [Kit.Inputs] cannot make, or not all of.
var Elsewhere = []Place{
	{42, 42, "", "revocation lists: with the keyring's renewal, in verify"},
	{43, 48, "", "revocation lists: with the keyring's renewal, in verify"},
	{49, 49, "", "thresholds: in verify"},
	{52, 52, "update TestNoKeyring", ""},
	{53, 75, "", "rows 53 to 75 have many more cases in TestManifestRefused of bundle"},
	{70, 70, "", "a bound on how far an epoch may rise at once: in boot"},
	{76, 76, "bundle TestMutations", ""},
	{77, 77, "bundle TestEveryTruncation", ""},
	{78, 78, "bundle TestHuge", ""},
	{81, 86, "", "tar images are not installed: Installable refuses them with code 31"},
	{87, 89, "squashfs TestBombs", ""},
	{90, 92, "", "tar images are not installed: Installable refuses them with code 31"},
	{93, 100, "fat TestHostileSticks", ""},
	{101, 101, "fat TestManyFiles", ""},
	{102, 102, "fat TestNames", ""},
	{103, 103, "disk TestHostileTables", ""},
	{104, 107, "bundle TestFickle", "in the virtual device: needs a block device that fails"},
	{108, 108, "", "a composite device: QEMU has none; usb tests what is authorised"},
	{109, 109, "qemu/story TestBadSticks", ""},
	{110, 110, "qemu/story TestBadSticks", ""},
	{111, 111, "fat TestHostileSticks", ""},
	{112, 112, "powercut TestNewestLost", ""},
	{113, 113, "boot/raw TestCommitIsAtomic", ""},
	{114, 114, "", "there is no TPM yet"},
	{115, 115, "", "the clock: with its rules, in boot and the virtual device"},
	{116, 116, "", "kernel command lines: TestParseCmdline of config; forty of them with the verified root"},
	{117, 118, "slots TestAttest", ""},
	{119, 119, "badinputs TestBelowFloor", ""},
	{120, 120, "", "keyrings that renew themselves: in verify"},
}
