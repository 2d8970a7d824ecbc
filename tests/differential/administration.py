"""Invented commands of ipvsadm: services and servers come, change and go."""

from __future__ import annotations

from dataclasses import dataclass, field

from dice import Dice
from profiles import Profile

VIRTUALS = {4: ("192.168.1.176", "192.168.1.176", "192.168.1.177"), 6: ("2001:db8::176",)}
PORTS = (80, 80, 443, 8080, 53, 0)
MARKS = (
    {"proto": "tcp", "dst": "192.168.1.176", "dports": [80, 443], "mark": 5},
    {"dst": "172.16.0.0/16", "mark": 7},
)
"""What the firewall may mark. The marked network is routed to the director itself."""
MARKED_ROUTE = "route add local 172.16.0.0/16 dev lo"
SERVERS = {
    4: [f"192.168.1.{n}" for n in range(11, 16)],
    6: [f"2001:db8::{n}" for n in range(11, 15)],
}
DIRECT = ("192.168.1.15", "[2001:db8::14]")
"""Those that never have another method than -g: the kernel loses packets after such a change."""
FAR = {4: "10.99.0.5", 6: "2001:db8:99::5"}
LOCAL = {4: ("192.168.1.175", "127.0.0.1", "192.168.1.176"), 6: ("2001:db8::175",)}
SERVICE_OPTIONS = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}
FLAGS = {
    "sh": ("sh-fallback", "sh-port", "sh-fallback,sh-port"),
    "mh": ("mh-fallback", "mh-port", "mh-fallback,mh-port"),
}
Do = dict[str, object]


@dataclass
class Service:
    """A virtual service that was asked for; whether it is there, the director knows.

    Attributes:
        version: of IP.
        protocol: of its packets; "" for a firewall mark.
        port: 0 = all.
        servers: that were added, each with its method's options.
    """

    version: int
    protocol: str
    virtual: str
    port: int
    mark: int = 0
    servers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> list[str]:
        """The words that name it."""
        if not self.protocol:
            return ["-f", str(self.mark), *(["-6"] if self.version == 6 else [])]
        host = self.virtual if self.version == 4 else f"[{self.virtual}]"
        return [SERVICE_OPTIONS[self.protocol], f"{host}:{self.port}"]


class Administration:
    """Invents commands, and remembers what they were about.

    Attributes:
        services: that were added.
        gone: names of services that were deleted, to come back.
    """

    def __init__(self, dice: Dice, profile: Profile) -> None:
        self._dice = dice
        self._profile = profile
        self.marks = [mark for mark in MARKS if dice.chance(0.3)]
        self.services: list[Service] = []
        self.gone: list[Service] = []

    def begin(self) -> list[Do]:
        """Return commands that make the first services and servers."""
        done = []
        if self._dice.chance(0.6):
            done.append(self.timeouts())
        done += [self.add_service() for _ in range(self._dice.between(1, 3))]
        done += [self.add_server() for _ in range(self._dice.between(2, 8))]
        return done

    def timeouts(self) -> Do:
        """Set the timeouts: often short ones, that something may end in time."""
        dice = self._dice
        values = (dice.pick((900, 20, 8, 0)), dice.pick((120, 4, 6)), dice.pick((300, 5, 0)))
        return _command("--set", *map(str, values))

    # --- services ---

    def add_service(self) -> Do:
        """Add a service, now and then one that is there, or was."""
        dice = self._dice
        back = self.gone and dice.chance(0.5)
        service = self.gone.pop(0) if back else self._new_service()
        if all(other.name != service.name for other in self.services):
            self.services.append(service)
        return _command("-A", *service.name, *self._service_options(service))

    def _new_service(self) -> Service:
        dice, profile = self._dice, self._profile
        version = 6 if profile.ipv6 and dice.chance(0.35) else 4
        if profile.steady:
            return Service(version, dice.pick(("tcp", "tcp", "udp")), VIRTUALS[version][0], 80)
        if dice.chance(0.3 if self.marks else 0.05):
            # Two services of one mark have one name in recordings; IPv6 packets have no marks.
            return Service(version, "", "", 0, dice.pick((5, 7)) if version == 4 else 6)
        weights = {"tcp": 6, "udp": 3, "sctp": 2 if profile.sctp else 0}
        port = dice.pick(PORTS)
        if dice.chance(0.05):
            port = dice.pick((20, 21))  # the kernel knows FTP's ports
        return Service(version, dice.weighted(weights), dice.pick(VIRTUALS[version]), port)

    def _service_options(self, service: Service) -> list[str]:
        dice, profile = self._dice, self._profile
        scheduler = dice.pick(profile.schedulers)
        words = ["-s", scheduler]
        if profile.flags and scheduler in FLAGS and dice.chance(0.6):
            words += ["-b", dice.pick(FLAGS[scheduler])]
        if (service.port == 0 and service.protocol) or dice.chance(0.35):
            words += ["-p", str(dice.pick((5, 10, 60, 360)))]
            if dice.chance(0.4):
                masks = {
                    4: ("255.255.255.0", "255.255.0.0", "255.0.255.0"),
                    6: ("64", "120", "127"),
                }
                words += ["-M", dice.pick(masks[service.version])]
        elif service.protocol in ("udp", "") and dice.chance(0.3):
            words.append("-o")
        return words

    def edit_service(self) -> Do:
        """Give a service another scheduler, other options."""
        service = self._dice.pick(self.services)
        return _command("-E", *service.name, *self._service_options(service))

    def delete_service(self) -> Do:
        """Delete a service; it may come back."""
        service = self._dice.pick(self.services)
        if len(self.services) > 1:
            self.services.remove(service)
            self.gone.append(service)
        return _command("-D", *service.name)

    # --- servers ---

    def add_server(self) -> Do:
        """Add a server, now and then one that is there."""
        service = self._dice.pick(self.services)
        server = self._address(service)
        words = [*self._method(server), *self._limits()]
        service.servers[server] = words
        return _command("-a", *service.name, "-r", server, *words)

    def edit_server(self) -> Do:
        """Change a server, now and then one that is not there."""
        service = self._dice.pick(self.services)
        server = self._known(service)
        method = self._method(server)
        return _command("-e", *service.name, "-r", server, *method, *self._limits())

    def delete_server(self) -> Do:
        """Delete a server, now and then one that is not there."""
        service = self._dice.pick(self.services)
        server = self._known(service)
        service.servers.pop(server, None)
        return _command("-d", *service.name, "-r", server)

    def _known(self, service: Service) -> str:
        if service.servers and self._dice.chance(0.9):
            return self._dice.pick(sorted(service.servers))
        return self._address(service)

    def _address(self, service: Service) -> str:
        dice, profile = self._dice, self._profile
        mixed = profile.ipv6 and dice.chance(0.1)
        version = 10 - service.version if mixed else service.version
        kind = dice.weighted({"near": 40, "local": 0.4 if profile.steady else 4, "far": 2})
        address = {
            "near": dice.pick(SERVERS[version]),
            "local": dice.pick(LOCAL[version]),
            "far": FAR[version],
        }[kind]
        if version == 6:
            address = f"[{address}]"
        if profile.methods and dice.chance(0.25):
            address += f":{dice.pick((80, 8080))}"
        return address

    def _method(self, server: str) -> list[str]:
        dice = self._dice
        if not self._profile.methods:
            return ["-i"]
        if any(server.startswith(direct) for direct in DIRECT):
            return ["-g"]
        kind = dice.weighted({"ipip": 3, "gue": 2, "gre": 2, "masq": 4})
        if kind == "gue":
            sums = dice.pick(([], ["--tun-nocsum"], ["--tun-csum"], ["--tun-remcsum"]))
            return ["-i", "--tun-type", "gue", "--tun-port", "6080", *sums]
        if kind == "gre":
            return ["-i", "--tun-type", "gre", *dice.pick(([], ["--tun-nocsum"], ["--tun-csum"]))]
        return ["-i"] if kind == "ipip" else ["-m"]

    def _limits(self) -> list[str]:
        dice = self._dice
        words = ["-w", str(dice.pick((0, 1, 1, 2, 3, 5, 10, 100)))]
        if dice.chance(0.25):
            upper = dice.between(1, 6)
            words += ["-x", str(upper)]
            if dice.chance(0.5):
                words += ["-y", str(dice.between(0, upper))]
        return words

    # --- the rest ---

    def zero(self) -> Do:
        """Zero counters."""
        service = self._dice.pick(self.services)
        return _command("-Z", *(service.name if self._dice.chance(0.7) else []))

    def listing(self) -> Do:
        """List what there is."""
        views = [["-Ln"], ["-Ln", "--thresholds"], ["-Ln", "--persistent-conn"], ["-Sn"]]
        if self._profile.listings:
            views += [["-Lnc"], ["-Lnc", "--persistent-conn"], ["-Ln", "--stats", "--exact"]]
            views += [["-Ln", "--stats"], ["-Ln", "--tun-info"], ["-L", "--timeout"]]
        return _command(*self._dice.pick(views))


def _command(*words: str) -> Do:
    return {"op": "ipvsadm", "argv": list(words)}
