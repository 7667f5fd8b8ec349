"""One certificate authority of the cluster's own, certificates signed by it, and the administrator's kubeconfig."""

import base64
import datetime
import ipaddress
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 3650


class Keys:
    """Files in one folder, `NAME.crt` and `NAME.key`, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "ca.crt").exists():
            self._make("ca", "cluster-ca", (), ())

    def crt(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    @property
    def bundle(self) -> str:
        """The authority's certificate, as webhooks and kubeconfigs want it."""
        return base64.b64encode(self.crt("ca").read_bytes()).decode()

    def certificate(self, name: str, subject: str, group: str = "", hosts: tuple[str, ...] = ()) -> None:
        """Make a certificate for servers and clients alike, unless it is there."""
        if not self.crt(name).exists():
            self._make(name, subject, (group,) if group else (), hosts)

    def pair(self, name: str) -> None:
        """A key pair without a certificate, for service account tokens: `NAME.key` and `NAME.pub`."""
        if not self.key(name).exists():
            key = ec.generate_private_key(ec.SECP256R1())
            public = key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            (self.folder / f"{name}.pub").write_bytes(public)
            self._write_key(name, key)

    def kubeconfig(self, path: Path, server: str, name: str) -> None:
        """Write a kubeconfig for the holder of a certificate."""
        user = {
            "client-certificate-data": base64.b64encode(self.crt(name).read_bytes()).decode(),
            "client-key-data": base64.b64encode(self.key(name).read_bytes()).decode(),
        }
        cluster = {"server": server, "certificate-authority-data": self.bundle}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": name}}],
            "current-context": "local",
        }
        path.touch(0o600)
        path.write_text(json.dumps(config))

    def _make(self, name: str, subject: str, groups: tuple[str, ...], hosts: tuple[str, ...]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        who = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
            + [x509.NameAttribute(NameOID.COMMON_NAME, subject)]
        )
        now, authority = datetime.datetime.now(datetime.UTC), name == "ca"
        issuer, signer = who, key
        if not authority:
            issuer = x509.load_pem_x509_certificate(self.crt("ca").read_bytes()).subject
            loaded = serialization.load_pem_private_key(self.key("ca").read_bytes(), None)
            assert isinstance(loaded, ec.EllipticCurvePrivateKey)
            signer = loaded
        builder = (
            x509.CertificateBuilder()
            .subject_name(who)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=DAYS))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        if hosts:
            names = [_host(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        self._write_key(name, key)
        self.crt(name).write_bytes(builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> None:
        self.key(name).touch(0o600)
        self.key(name).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
